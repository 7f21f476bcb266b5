// SPDX-License-Identifier: GPL-2.0-only
/*
 * dmem_pat_probe: maps memory that is neither RAM nor tracked by PAT in the
 * way the kernel offers to drivers, vmf_insert_pfn_pmd(), for the case
 * hole-pat-untracked: /dev/dmem_pat_probe maps the bytes from base on, 2 MiB
 * at a time. With track=1 they are tracked first, which takes a kernel that
 * exports pfnmap_track(); on others the module does not load (ENOENT).
 */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/pgtable.h>

static unsigned long base;
module_param(base, ulong, 0400);
MODULE_PARM_DESC(base, "physical address of the first byte, a multiple of 2 MiB");

static unsigned long size;
module_param(size, ulong, 0400);
MODULE_PARM_DESC(size, "how many bytes, a multiple of 2 MiB");

static bool track;
module_param(track, bool, 0400);
MODULE_PARM_DESC(track, "whether the bytes are tracked as write-back");

static vm_fault_t probe_huge_fault(struct vm_fault *vmf, unsigned int order)
{
	unsigned long offset = (vmf->pgoff << PAGE_SHIFT) & PMD_MASK;

	if (order != PMD_ORDER)
		return VM_FAULT_FALLBACK;
	if (offset >= size)
		return VM_FAULT_SIGBUS;
	return vmf_insert_pfn_pmd(vmf, PHYS_PFN(base + offset),
				  vmf->flags & FAULT_FLAG_WRITE);
}

/* There are 2 MiB leaves or none. */
static vm_fault_t probe_fault(struct vm_fault *vmf)
{
	return VM_FAULT_SIGBUS;
}

static const struct vm_operations_struct probe_vm_ops = {
	.fault		= probe_fault,
	.huge_fault	= probe_huge_fault,
};

static int probe_mmap_prepare(struct vm_area_desc *desc)
{
	if (!vma_desc_test(desc, VMA_SHARED_BIT))
		return -EINVAL;
	vma_desc_set_flags(desc, VMA_PFNMAP_BIT, VMA_DONTEXPAND_BIT,
			   VMA_DONTDUMP_BIT);
	desc->vm_ops = &probe_vm_ops;
	return 0;
}

static const struct file_operations probe_fops = {
	.owner			= THIS_MODULE,
	.mmap_prepare		= probe_mmap_prepare,
	.get_unmapped_area	= thp_get_unmapped_area,
};

static struct miscdevice probe_device = {
	.minor	= MISC_DYNAMIC_MINOR,
	.name	= KBUILD_MODNAME,
	.fops	= &probe_fops,
	.mode	= 0600,
};

static int track_all(void)
{
	int (*call)(unsigned long pfn, unsigned long size, pgprot_t *prot);
	pgprot_t prot = PAGE_SHARED;
	int err;

	call = symbol_get(pfnmap_track);
	if (!call)
		return -ENOENT;
	err = call(PHYS_PFN(base), size, &prot);
	symbol_put(pfnmap_track);
	return err;
}

static void untrack_all(void)
{
	void (*call)(unsigned long pfn, unsigned long size);

	call = symbol_get(pfnmap_untrack);
	if (WARN_ON(!call))
		return;
	call(PHYS_PFN(base), size);
	symbol_put(pfnmap_untrack);
}

static int __init probe_init(void)
{
	int err;

	if (!base || !size || !IS_ALIGNED(base | size, PMD_SIZE))
		return -EINVAL;
	if (track) {
		err = track_all();
		if (err)
			return err;
	}
	err = misc_register(&probe_device);
	if (err && track)
		untrack_all();
	return err;
}

static void __exit probe_exit(void)
{
	misc_deregister(&probe_device);
	if (track)
		untrack_all();
}

module_init(probe_init);
module_exit(probe_exit);
MODULE_DESCRIPTION("Maps untracked memory by vmf_insert_pfn_pmd(), for a test");
MODULE_LICENSE("GPL");
