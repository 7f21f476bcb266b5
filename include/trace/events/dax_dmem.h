/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Tracepoints of dax_dmem, see Documentation/tracing.md. What a number means
 * is written once more where the driver makes it, drivers/dax/dmem/ffi/trace.rs.
 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM dax_dmem

#if !defined(_TRACE_DAX_DMEM_H) || defined(TRACE_HEADER_MULTI_READ)
#define _TRACE_DAX_DMEM_H

#include <linux/tracepoint.h>
#include <linux/types.h>

/* A device was bound, or that was refused: then error is not 0. */
TRACE_EVENT(dax_dmem_bind,
	    TP_PROTO(const char *device, u64 size, u64 dirty, int error),
	    TP_ARGS(device, size, dirty, error),
	    TP_STRUCT__entry(__string(device, device)
			     __field(u64, size)
			     __field(u64, dirty)
			     __field(int, error)),
	    TP_fast_assign(__assign_str(device);
			   __entry->size = size;
			   __entry->dirty = dirty;
			   __entry->error = error;),
	    TP_printk("device=%s size=%llu dirty=%llu error=%d",
		      __get_str(device), __entry->size, __entry->dirty,
		      __entry->error));

/* A device was taken away from its users. */
TRACE_EVENT(dax_dmem_unbind,
	    TP_PROTO(const char *device, unsigned int openers),
	    TP_ARGS(device, openers),
	    TP_STRUCT__entry(__string(device, device)
			     __field(unsigned int, openers)),
	    TP_fast_assign(__assign_str(device);
			   __entry->openers = openers;),
	    TP_printk("device=%s openers=%u", __get_str(device), __entry->openers));

DECLARE_EVENT_CLASS(dax_dmem_vma,
		    TP_PROTO(const char *device, unsigned long start, unsigned long end,
			     unsigned long pgoff),
		    TP_ARGS(device, start, end, pgoff),
		    TP_STRUCT__entry(__string(device, device)
				     __field(unsigned long, start)
				     __field(unsigned long, end)
				     __field(unsigned long, pgoff)),
		    TP_fast_assign(__assign_str(device);
				   __entry->start = start;
				   __entry->end = end;
				   __entry->pgoff = pgoff;),
		    TP_printk("device=%s start=0x%lx end=0x%lx pgoff=0x%lx",
			      __get_str(device), __entry->start, __entry->end,
			      __entry->pgoff));

/* A VMA of a device came to be: by mmap, fork, a split or mremap. */
DEFINE_EVENT(dax_dmem_vma, dax_dmem_map,
	     TP_PROTO(const char *device, unsigned long start, unsigned long end,
		      unsigned long pgoff),
	     TP_ARGS(device, start, end, pgoff));

/* One has gone. */
DEFINE_EVENT(dax_dmem_vma, dax_dmem_unmap,
	     TP_PROTO(const char *device, unsigned long start, unsigned long end,
		      unsigned long pgoff),
	     TP_ARGS(device, start, end, pgoff));

/* The kernel asked for a leaf of 2^order pages at an address. */
TRACE_EVENT(dax_dmem_fault,
	    TP_PROTO(const char *device, unsigned long address, unsigned int order,
		     unsigned int result),
	    TP_ARGS(device, address, order, result),
	    TP_STRUCT__entry(__string(device, device)
			     __field(unsigned long, address)
			     __field(unsigned int, order)
			     __field(unsigned int, result)),
	    TP_fast_assign(__assign_str(device);
			   __entry->address = address;
			   __entry->order = order;
			   __entry->result = result;),
	    TP_printk("device=%s address=0x%lx leaf=%s result=%s",
		      __get_str(device), __entry->address,
		      __print_symbolic(__entry->order,
				       { 0, "4k" }, { 9, "2m" }, { 18, "1g" }),
		      __print_symbolic(__entry->result,
				       { 0, "mapped" }, { 1, "smaller" },
				       { 2, "sigbus" }, { 3, "poisoned" })));

/* A worker begins to scrub an extent of physical memory, or ends. */
TRACE_EVENT(dax_dmem_scrub,
	    TP_PROTO(u64 start, u64 size, u64 done, unsigned int state),
	    TP_ARGS(start, size, done, state),
	    TP_STRUCT__entry(__field(u64, start)
			     __field(u64, size)
			     __field(u64, done)
			     __field(unsigned int, state)),
	    TP_fast_assign(__entry->start = start;
			   __entry->size = size;
			   __entry->done = done;
			   __entry->state = state;),
	    TP_printk("start=0x%llx size=%llu done=%llu state=%s",
		      __entry->start, __entry->size, __entry->done,
		      __print_symbolic(__entry->state,
				       { 0, "begun" }, { 1, "done" },
				       { 2, "stopped" }, { 3, "failed" })));

/* A page of 4 KiB was taken out of use, or back into it. */
TRACE_EVENT(dax_dmem_poison,
	    TP_PROTO(u64 address, bool cleared),
	    TP_ARGS(address, cleared),
	    TP_STRUCT__entry(__field(u64, address)
			     __field(bool, cleared)),
	    TP_fast_assign(__entry->address = address;
			   __entry->cleared = cleared;),
	    TP_printk("address=0x%llx cleared=%d",
		      __entry->address, __entry->cleared));

/* A device was unbound while in use, or its last user has gone since. */
TRACE_EVENT(dax_dmem_quarantine,
	    TP_PROTO(const char *device, unsigned int openers),
	    TP_ARGS(device, openers),
	    TP_STRUCT__entry(__string(device, device)
			     __field(unsigned int, openers)),
	    TP_fast_assign(__assign_str(device);
			   __entry->openers = openers;),
	    TP_printk("device=%s openers=%u", __get_str(device), __entry->openers));

#endif /* _TRACE_DAX_DMEM_H */

#include <trace/define_trace.h>
