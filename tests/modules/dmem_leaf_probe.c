// SPDX-License-Identifier: GPL-2.0-only
/*
 * dmem_leaf_probe: maps memory that is neither RAM nor tracked by PAT in the
 * way the kernel offers to drivers, vmf_insert_pfn_pmd() and _pud(), for the
 * cases hole-pat-untracked and hole-zap-leaf, layout-put-back: /dev/dmem_leaf_probe maps the
 * bytes from base on, over and over, by the largest leaf that fits. Writing to it drops the
 * leaves of all its mappings, with no lock that faults would take. With track=1
 * the bytes are tracked first, which takes a kernel that exports pfnmap_track();
 * on others the module does not load (ENOENT). With claim=1 they are claimed, as
 * a driver does whose memory they are.
 */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/fs.h>
#include <linux/ioport.h>
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

static bool claim;
module_param(claim, bool, 0400);
MODULE_PARM_DESC(claim, "whether the bytes are claimed, so that no driver gets them");

static vm_fault_t probe_huge_fault(struct vm_fault *vmf, unsigned int order)
{
	unsigned long leaf = PAGE_SIZE << order;
	unsigned long offset = (vmf->pgoff << PAGE_SHIFT) % size;
	bool write = vmf->flags & FAULT_FLAG_WRITE;

	if (!IS_ALIGNED(base | size, leaf))
		return VM_FAULT_FALLBACK;
	offset = round_down(offset, leaf);
	if (order == PUD_ORDER)
		return vmf_insert_pfn_pud(vmf, PHYS_PFN(base + offset), write);
	if (order == PMD_ORDER)
		return vmf_insert_pfn_pmd(vmf, PHYS_PFN(base + offset), write);
	return VM_FAULT_FALLBACK;
}

/* There are huge leaves or none. */
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

static ssize_t probe_write(struct file *file, const char __user *bytes,
			   size_t count, loff_t *pos)
{
	unmap_mapping_range(file->f_mapping, 0, 0, 1);
	return count;
}

static const struct file_operations probe_fops = {
	.owner			= THIS_MODULE,
	.write			= probe_write,
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
	if (claim && !request_mem_region(base, size, KBUILD_MODNAME))
		return -EBUSY;
	if (track) {
		err = track_all();
		if (err)
			goto unclaim;
	}
	err = misc_register(&probe_device);
	if (err)
		goto untrack;
	return 0;

untrack:
	if (track)
		untrack_all();
unclaim:
	if (claim)
		release_mem_region(base, size);
	return err;
}

static void __exit probe_exit(void)
{
	misc_deregister(&probe_device);
	if (track)
		untrack_all();
	if (claim)
		release_mem_region(base, size);
}

module_init(probe_init);
module_exit(probe_exit);
MODULE_DESCRIPTION("Maps memory by vmf_insert_pfn_pmd() and _pud(), for tests");
MODULE_LICENSE("GPL");
