/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What bindgen reads to make bindings_generated.rs: the dax bus's private
 * interface, this driver's C helpers and tracepoints.
 */
#include "helpers.h"

#include <linux/dax.h>
#include <linux/device.h>
#include <linux/fs.h>
#include <linux/mman.h>
#include <linux/range.h>

#include <trace/events/dax_dmem.h>

#include "dax-private.h"
#include "bus.h"

/* Macros with a cast, which bindgen skips. */
const fop_flags_t DMEM_FOP_MMAP_SYNC = FOP_MMAP_SYNC;
const unsigned long DMEM_MAP_FIXED = MAP_FIXED;
