// SPDX-License-Identifier: GPL-2.0
#include <linux/cdev.h>
#include <linux/dax.h>
#include <linux/device.h>
#include <linux/fs.h>
#include <linux/kref.h>
#include <linux/mm.h>
#include <linux/mmzone.h>
#include <linux/pagemap.h>
#include <linux/pci.h>
#include <linux/pgalloc.h>
#include <linux/pgtable.h>
#include <linux/platform_device.h>
#include <linux/printk.h>
#include <linux/range.h>
#include <linux/rbtree.h>
#include <linux/sched.h>
#include <linux/sizes.h>
#include <linux/smp.h>
#include <linux/string.h>
#include <linux/tracepoint.h>
#include <linux/uaccess.h>
#include <linux/workqueue.h>

#include <asm/cpufeature.h>
#include <asm/fpu/api.h>
#include <asm/fpu/xcr.h>
#include <asm/cacheflush.h>
#include <asm/mce.h>

#include "dax-private.h"
#include "bus.h"
#include "helpers.h"

spinlock_t *dmem_pud_lock(struct mm_struct *mm, pud_t *pud)
{
	return pud_lock(mm, pud);
}

spinlock_t *dmem_pmd_lock(struct mm_struct *mm, pmd_t *pmd)
{
	return pmd_lock(mm, pmd);
}

spinlock_t *dmem_pte_lock(struct mm_struct *mm, pmd_t *pmd)
{
	spinlock_t *ptl = pte_lockptr(mm, pmd);

	spin_lock(ptl);
	return ptl;
}

void dmem_unlock(spinlock_t *ptl)
{
	spin_unlock(ptl);
}

/*
 * A leaf is installed young, and dirty and writable where the VMA is writable:
 * nothing tracks dirtiness of memory without pages, so a later write must not
 * have to come back for it.
 */
pud_t dmem_special_pud(unsigned long pfn, pgprot_t prot, bool writable)
{
	pud_t pud = pud_mkyoung(pud_mkspecial(pud_mkhuge(pfn_pud(pfn, prot))));

	return writable ? pud_mkwrite(pud_mkdirty(pud)) : pud;
}

pmd_t dmem_special_pmd(unsigned long pfn, pgprot_t prot, bool writable)
{
	pmd_t pmd = pmd_mkyoung(pmd_mkspecial(pmd_mkhuge(pfn_pmd(pfn, prot))));

	return writable ? pmd_mkwrite_novma(pmd_mkdirty(pmd)) : pmd;
}

pte_t dmem_special_pte(unsigned long pfn, pgprot_t prot, bool writable)
{
	pte_t pte = pte_mkyoung(pte_mkspecial(pfn_pte(pfn, prot)));

	return writable ? pte_mkwrite_novma(pte_mkdirty(pte)) : pte;
}

bool dmem_pud_none(pud_t pud)
{
	return pud_none(pud);
}

bool dmem_pmd_none(pmd_t pmd)
{
	return pmd_none(pmd);
}

bool dmem_pte_none(pte_t pte)
{
	return pte_none(pte);
}

bool dmem_pud_leaf(pud_t pud)
{
	return pud_leaf(pud);
}

bool dmem_pmd_leaf(pmd_t pmd)
{
	return pmd_leaf(pmd);
}

unsigned long dmem_pud_pfn(pud_t pud)
{
	return pud_pfn(pud);
}

unsigned long dmem_pmd_pfn(pmd_t pmd)
{
	return pmd_pfn(pmd);
}

void dmem_set_pud(struct vm_area_struct *vma, unsigned long addr, pud_t *pudp,
		  pud_t pud)
{
	set_pud_at(vma->vm_mm, addr, pudp, pud);
	update_mmu_cache_pud(vma, addr, pudp);
}

void dmem_set_pmd(struct vm_area_struct *vma, unsigned long addr, pmd_t *pmdp,
		  pmd_t pmd)
{
	set_pmd_at(vma->vm_mm, addr, pmdp, pmd);
	update_mmu_cache_pmd(vma, addr, pmdp);
}

void dmem_set_pte(struct vm_area_struct *vma, unsigned long addr, pte_t *ptep,
		  pte_t pte)
{
	set_pte_at(vma->vm_mm, addr, ptep, pte);
	update_mmu_cache(vma, addr, ptep);
}

/* mm/memory.c:pmd_install() is not exported; this is its body. */
void dmem_populate_pmd(struct mm_struct *mm, pmd_t *pmd, pgtable_t table)
{
	mm_inc_nr_ptes(mm);
	/* Order initialisation of the table before it becomes reachable. */
	smp_wmb();
	pmd_populate(mm, pmd, table);
}

pte_t *dmem_pte_of(pmd_t *pmd, unsigned long addr)
{
	return pte_offset_kernel(pmd, addr);
}

/* The PUD entry that covers @addr, or NULL where no such table exists. */
pud_t *dmem_pud_of(struct mm_struct *mm, unsigned long addr)
{
	pgd_t *pgd = pgd_offset(mm, addr);
	p4d_t *p4d;

	if (pgd_none(*pgd) || pgd_bad(*pgd))
		return NULL;
	p4d = p4d_offset(pgd, addr);
	if (p4d_none(*p4d) || p4d_bad(*p4d))
		return NULL;
	return pud_offset(p4d, addr);
}

/*
 * The entry for @addr in the table that an entry led to when it was read: it
 * may lead elsewhere by now.
 */
pmd_t *dmem_pmd_in(pud_t table, unsigned long addr)
{
	return pmd_offset(&table, addr);
}

pte_t *dmem_pte_in(pmd_t table, unsigned long addr)
{
	return pte_offset_kernel(&table, addr);
}

bool dmem_desc_is_shared(const struct vm_area_desc *desc)
{
	return vma_flags_test_any(&desc->vma_flags, VMA_MAYSHARE_BIT);
}

void dmem_desc_set_pageless(struct vm_area_desc *desc)
{
	vma_desc_set_flags(desc, VMA_PFNMAP_BIT, VMA_DONTEXPAND_BIT,
			   VMA_DONTDUMP_BIT);
}

void dmem_vma_start_write(struct vm_area_struct *vma)
{
	vma_start_write(vma);
}

/*
 * Whether the VMA that vm_ops->open() is called for is the destination of an
 * mremap() rather than a part of a split or a copy for a child: only then
 * nothing is mapped at its place in the caller's own address space.
 */
bool dmem_vma_is_moving(const struct vm_area_struct *vma)
{
	struct vm_area_struct *there;

	if (vma->vm_mm != current->mm)
		return false;
	there = find_vma(current->mm, vma->vm_start);
	return !there || there->vm_start > vma->vm_start;
}

void dmem_lock_vmas(struct address_space *mapping)
{
	i_mmap_lock_read(mapping);
}

void dmem_unlock_vmas(struct address_space *mapping)
{
	i_mmap_unlock_read(mapping);
}

/*
 * Every VMA of the mapping, in some order: mm's own walks of this tree are not
 * exported.
 */
struct vm_area_struct *dmem_first_vma(struct address_space *mapping)
{
	return rb_entry_safe(rb_first_cached(&mapping->i_mmap),
			     struct vm_area_struct, shared.rb);
}

struct vm_area_struct *dmem_next_vma(struct vm_area_struct *vma)
{
	return rb_entry_safe(rb_next(&vma->shared.rb), struct vm_area_struct,
			     shared.rb);
}

void dmem_file_set_mapping(struct file *file, struct inode *inode)
{
	file->f_mapping = inode->i_mapping;
	file->f_wb_err = filemap_sample_wb_err(file->f_mapping);
}

/*
 * The cdev that device_dax embeds in the dax inode lives as long as a file of
 * an earlier binding is open; until then chrdev_open() may lead new openers
 * to it instead of to this driver.
 */
bool dmem_embedded_cdev_is_held(const struct inode *dax_inode)
{
	return kref_read(&dax_inode->i_cdev->kobj.kref) != 0;
}

void dmem_notice_refused_mmap(const char *device, const char *why,
			      unsigned long pgoff, unsigned long pages)
{
	pr_info_ratelimited("dax_dmem: %s: %s[%d]: mmap of %lu pages at page %lu refused: %s\n",
			    device, current->comm, task_pid_nr(current), pages,
			    pgoff, why);
}

/*
 * Finds the first pfn in [@start, @start + @nr) that has a struct page. The
 * memory map comes and goes in subsections, so one look at each is exact.
 */
bool dmem_first_valid_pfn(unsigned long start, unsigned long nr,
			  unsigned long *pfn)
{
	unsigned long end = start + nr;
	unsigned long next;

	for (; start < end; start = next) {
		unsigned long section = pfn_to_section_nr(start);

		next = section_nr_to_pfn(section + 1);
		if (section < NR_MEM_SECTIONS &&
		    valid_section(__nr_to_section(section))) {
			next = ALIGN(start + 1, PAGES_PER_SUBSECTION);
			if (pfn_valid(start)) {
				*pfn = start;
				return true;
			}
		}
	}
	return false;
}

/*
 * Overwrites whole pages with zeros, with stores that go past the cache: what
 * is cleared here belongs to nobody, and nobody's cache shall pay for it. One
 * FPU section, which runs without preemption, is 64 KiB long.
 */
void dmem_clear(void *to, unsigned long len)
{
	bool avx = boot_cpu_has(X86_FEATURE_AVX) &&
		   cpu_has_xfeatures(XFEATURE_MASK_SSE | XFEATURE_MASK_YMM, NULL);
	void *end = to + len;

	while (to < end) {
		void *stop = min(to + SZ_64K, end);

		if (avx) {
			kernel_fpu_begin();
			asm volatile("vpxor %%xmm0, %%xmm0, %%xmm0\n"
				     "1:\n"
				     "vmovntdq %%ymm0, 0x00(%0)\n"
				     "vmovntdq %%ymm0, 0x20(%0)\n"
				     "vmovntdq %%ymm0, 0x40(%0)\n"
				     "vmovntdq %%ymm0, 0x60(%0)\n"
				     "vmovntdq %%ymm0, 0x80(%0)\n"
				     "vmovntdq %%ymm0, 0xa0(%0)\n"
				     "vmovntdq %%ymm0, 0xc0(%0)\n"
				     "vmovntdq %%ymm0, 0xe0(%0)\n"
				     "addq $0x100, %0\n"
				     "cmpq %1, %0\n"
				     "jb 1b\n"
				     "vzeroupper\n"
				     : "+r" (to) : "r" (stop) : "memory", "cc");
			kernel_fpu_end();
		} else {
			asm volatile("1:\n"
				     "movnti %2, 0x00(%0)\n"
				     "movnti %2, 0x08(%0)\n"
				     "movnti %2, 0x10(%0)\n"
				     "movnti %2, 0x18(%0)\n"
				     "movnti %2, 0x20(%0)\n"
				     "movnti %2, 0x28(%0)\n"
				     "movnti %2, 0x30(%0)\n"
				     "movnti %2, 0x38(%0)\n"
				     "addq $0x40, %0\n"
				     "cmpq %1, %0\n"
				     "jb 1b\n"
				     : "+r" (to) : "r" (stop), "r" (0UL)
				     : "memory", "cc");
		}
	}
	/* Such stores are weakly ordered: let them be seen before what follows. */
	wmb();
}

/* Copies as far as no memory error comes to light; how many bytes are left. */
unsigned long dmem_copy_mc(void *to, const void *from, unsigned long len)
{
	return copy_mc_to_kernel(to, from, len);
}

static bool reads_as(const void *at, unsigned long len, u8 byte)
{
	u8 piece[128];

	for (; len; at += sizeof(piece), len -= sizeof(piece)) {
		if (copy_mc_to_kernel(piece, at, sizeof(piece)) ||
		    memchr_inv(piece, byte, sizeof(piece)))
			return false;
	}
	return true;
}

/*
 * Whether whole pages keep what is written to them. The cache is flushed after
 * each pattern, so that it is the memory that is read.
 */
bool dmem_stands_test(void *at, unsigned long len)
{
	static const u8 patterns[] = { 0x55, 0xaa, 0xff };
	int i;

	for (i = 0; i < ARRAY_SIZE(patterns); i++) {
		memset(at, patterns[i], len);
		clflush_cache_range(at, len);
		if (!reads_as(at, len, patterns[i]))
			return false;
	}
	dmem_clear(at, len);
	return reads_as(at, len, 0);
}

static void match_failure_event(struct tracepoint *tp, void *found)
{
	if (!strcmp(tp->name, "memory_failure_event"))
		*(struct tracepoint **)found = tp;
}

/*
 * Has @heard called for each memory failure that the kernel has dealt with: of
 * memory that no process has mapped it tells nobody else. NULL where it has no
 * such tracepoint; drivers cannot name it, as it is not exported.
 */
void *dmem_watch_failures(dmem_heard_fn heard)
{
	struct tracepoint *tp = NULL;

	for_each_kernel_tracepoint(match_failure_event, &tp);
	if (!tp || tracepoint_probe_register(tp, heard, NULL))
		return NULL;
	return tp;
}

/* Nobody is in @heard any more when this returns. */
void dmem_unwatch_failures(void *watched, dmem_heard_fn heard)
{
	tracepoint_probe_unregister(watched, heard, NULL);
	tracepoint_synchronize_unregister();
}

void dmem_notice_poison(u64 page)
{
	pr_err_ratelimited("dax_dmem: %#llx: uncorrectable memory error, 4 KiB taken out of use\n",
			   page);
}

unsigned long dmem_mce_address(const struct mce *mce)
{
	return mce->addr & MCI_ADDR_PHYSADDR;
}

void *dmem_zero_page(void)
{
	return (void *)get_zeroed_page(GFP_KERNEL);
}

unsigned long dmem_phys_of(const void *page)
{
	return __pa(page);
}

/*
 * Whether a driver has the device that manages the device's DMA itself, as those
 * of VFIO do: they let a process say where it reads and writes. A device that
 * is just being bound or unbound counts, too.
 */
static int dmem_is_lent(struct device *dev, void *unused)
{
	bool lent = false;

	if (!device_trylock(dev))
		return true;
	if (!dev->driver)
		lent = false;
	else if (dev_is_platform(dev))
		lent = to_platform_driver(dev->driver)->driver_managed_dma;
#ifdef CONFIG_PCI
	else if (dev_is_pci(dev) && !pci_is_bridge(to_pci_dev(dev)))
		lent = to_pci_driver(dev->driver)->driver_managed_dma;
#endif
	device_unlock(dev);
	return lent;
}

bool dmem_dma_is_lent(void)
{
#ifdef CONFIG_PCI
	if (bus_for_each_dev(&pci_bus_type, NULL, NULL, dmem_is_lent))
		return true;
#endif
	return bus_for_each_dev(&platform_bus_type, NULL, NULL, dmem_is_lent);
}

int dmem_mm_count(const struct mm_struct *mm)
{
	return atomic_read(&mm->mm_count);
}

struct dmem_lazy {
	const struct mm_struct *mm;
	atomic_t cpus;
};

static void dmem_count_lazy(void *data)
{
	struct dmem_lazy *lazy = data;

	if (!current->mm && current->active_mm == lazy->mm)
		atomic_inc(&lazy->cpus);
}

/*
 * References to an address space, without its users' and, once those are gone,
 * without the ones of CPUs that have run nothing else since. Too many when one
 * goes meanwhile, never too few: no CPU takes up an address space without users,
 * and the references are read first.
 */
int dmem_mm_references(struct mm_struct *mm)
{
	struct dmem_lazy lazy = { .mm = mm };
	bool used = atomic_read_acquire(&mm->mm_users);
	int references = dmem_mm_count(mm);

	if (used)
		return references - 1;
	on_each_cpu(dmem_count_lazy, &lazy, true);
	return references - atomic_read(&lazy.cpus);
}

struct task_struct *dmem_current(void)
{
	return current;
}

/* WQ_SYSFS: the operator can keep scrubs off the CPUs of guests. */
struct workqueue_struct *dmem_alloc_workqueue(const char *name)
{
	return alloc_workqueue("%s", WQ_UNBOUND | WQ_SYSFS, 0, name);
}

void dmem_cond_resched(void)
{
	cond_resched();
}

const struct dmem_layout dmem_layout = {
	.dev_dax_size = sizeof(struct dev_dax),
	.dev_dax_dev = offsetof(struct dev_dax, dev),
	.dev_dax_nr_range = offsetof(struct dev_dax, nr_range),
	.dev_dax_ranges = offsetof(struct dev_dax, ranges),
	.dev_dax_range_size = sizeof(struct dev_dax_range),
	.dax_device_driver_size = sizeof(struct dax_device_driver),
	.dax_device_driver_probe = offsetof(struct dax_device_driver, probe),
	.vm_fault_size = sizeof(struct vm_fault),
	.vm_operations_size = sizeof(const struct vm_operations_struct),
	.file_operations_size = sizeof(const struct file_operations),
	.vm_area_desc_size = sizeof(struct vm_area_desc),
	.inode_size = sizeof(struct inode),
};
