// SPDX-License-Identifier: GPL-2.0-only
/*
 * dax_dmem_guard: keeps the page walk of mbind() out of dax_dmem's memory.
 *
 * queue_folios_pte_range(), the walk's pmd_entry, looks for a folio behind
 * each PMD leaf, which crashes the kernel where there are no struct pages
 * (see Documentation/kernel-holes.md). No driver is asked before. While this
 * module is loaded, ftrace sends calls for a VMA of dax_dmem to a function
 * that has found nothing, which is what a fixed kernel finds there. All other
 * calls run the kernel's own code. Kernels from 7.3 on are fixed, and the
 * module refuses to load there.
 *
 * This is what a live patch does (kernel/livepatch/patch.c). A real one
 * replaces a function for everybody: it would have to carry a copy of this
 * one and of the static functions and private structures that it uses, to be
 * kept equal to each point release. The prototype used here is public.
 *
 * Needs nothing from Rust, and Rust has no abstractions for ftrace: each line
 * would be unsafe, on bindings of this module's own.
 */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/fs.h>
#include <linux/ftrace.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/pagewalk.h>
#include <linux/rcupdate.h>
#include <linux/string.h>

#define GUARDED "queue_folios_pte_range"
#define DRIVER "dax_dmem"

/* Set in Makefile, by the kernel's version. */
#ifndef DMEM_MBIND_FIXED
#define DMEM_MBIND_FIXED 0
#endif

/* In place of the guarded function: there was nothing to be queued. */
static int nothing_found(pmd_t *pmd, unsigned long addr, unsigned long end,
			 struct mm_walk *walk)
{
	return 0;
}

/* The walk holds the mmap lock: the VMA, its file and the driver stay. */
static bool notrace is_dmem(const struct vm_area_struct *vma)
{
	const struct module *owner;

	if (!vma || !(vma->vm_flags & VM_PFNMAP) || !vma->vm_file)
		return false;
	owner = vma->vm_file->f_op->owner;
	return owner && !strcmp(owner->name, DRIVER);
}

static void notrace divert(unsigned long ip, unsigned long parent_ip,
			   struct ftrace_ops *ops, struct ftrace_regs *fregs)
{
	/* The fourth argument of ->pmd_entry() (linux/pagewalk.h). */
	const struct mm_walk *walk =
		(const struct mm_walk *)ftrace_regs_get_argument(fregs, 3);

	if (is_dmem(walk->vma))
		ftrace_regs_set_instruction_pointer(fregs,
						    (unsigned long)nothing_found);
}

/*
 * Permanent: kernel.ftrace_enabled=0 must not open the hole again, and is
 * refused meanwhile. The handler cannot recurse: what it calls is not traced,
 * or, strcmp(), is not guarded.
 */
static struct ftrace_ops guard_ops = {
	.func = divert,
	.flags = FTRACE_OPS_FL_IPMODIFY | FTRACE_OPS_FL_PERMANENT,
};

static int __init guard_init(void)
{
	/* The type checker's word that nothing_found() can stand in. */
	const struct mm_walk_ops __maybe_unused ops = { .pmd_entry = nothing_found };
	int ret;

	if (DMEM_MBIND_FIXED) {
		pr_notice("not needed: mbind() of this kernel passes over the mappings of %s by itself; not loaded\n",
			  DRIVER);
		return -ENODEV;
	}
	ret = ftrace_set_filter(&guard_ops, (unsigned char *)GUARDED,
				strlen(GUARDED), 1);
	if (ret) {
		pr_err("this kernel has no function %s to divert (%d): not loaded\n",
		       GUARDED, ret);
		return ret;
	}
	ret = register_ftrace_function(&guard_ops);
	if (ret) {
		pr_err("%s cannot be diverted (%d), is it live-patched? not loaded\n",
		       GUARDED, ret);
		ftrace_free_filter(&guard_ops);
		return ret;
	}
	pr_info("mbind() passes over the mappings of %s\n", DRIVER);
	return 0;
}

static void __exit guard_exit(void)
{
	/* Returns when no CPU is in the handler any more. */
	unregister_ftrace_function(&guard_ops);
	/* A task may have been preempted in nothing_found(), which is freed. */
	synchronize_rcu_tasks();
	ftrace_free_filter(&guard_ops);
	pr_info("mbind() is as it was\n");
}

module_init(guard_init);
module_exit(guard_exit);

MODULE_AUTHOR("The daxdmem authors");
MODULE_DESCRIPTION("Keeps mbind() out of the memory of dax_dmem");
MODULE_LICENSE("GPL");
