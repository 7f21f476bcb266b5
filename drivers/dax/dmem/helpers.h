/* SPDX-License-Identifier: GPL-2.0 */
/*
 * C that Rust cannot replace: the kernel's inline functions and macros, one
 * helper each, and the layouts gcc gave to the structures bindgen (libclang)
 * laid out for Rust.
 */
#ifndef __DAX_DMEM_HELPERS_H__
#define __DAX_DMEM_HELPERS_H__

#include <linux/fs.h>
#include <linux/memory-failure.h>
#include <linux/mm.h>
#include <linux/mm_types.h>
#include <linux/types.h>

#include <asm/mce.h>

/* Page tables; callers hold the lock the name implies. */
spinlock_t *dmem_pud_lock(struct mm_struct *mm, pud_t *pud);
spinlock_t *dmem_pmd_lock(struct mm_struct *mm, pmd_t *pmd);
spinlock_t *dmem_pte_lock(struct mm_struct *mm, pmd_t *pmd);
void dmem_unlock(spinlock_t *ptl);

pud_t dmem_special_pud(unsigned long pfn, pgprot_t prot, bool writable);
pmd_t dmem_special_pmd(unsigned long pfn, pgprot_t prot, bool writable);
pte_t dmem_special_pte(unsigned long pfn, pgprot_t prot, bool writable);

bool dmem_pud_none(pud_t pud);
bool dmem_pmd_none(pmd_t pmd);
bool dmem_pte_none(pte_t pte);
bool dmem_pud_leaf(pud_t pud);
bool dmem_pmd_leaf(pmd_t pmd);
unsigned long dmem_pud_pfn(pud_t pud);
unsigned long dmem_pmd_pfn(pmd_t pmd);

void dmem_set_pud(struct vm_area_struct *vma, unsigned long addr, pud_t *pudp,
		  pud_t pud);
void dmem_set_pmd(struct vm_area_struct *vma, unsigned long addr, pmd_t *pmdp,
		  pmd_t pmd);
void dmem_set_pte(struct vm_area_struct *vma, unsigned long addr, pte_t *ptep,
		  pte_t pte);
void dmem_populate_pmd(struct mm_struct *mm, pmd_t *pmd, pgtable_t table);
pte_t *dmem_pte_of(pmd_t *pmd, unsigned long addr);
pud_t *dmem_pud_of(struct mm_struct *mm, unsigned long addr);
pmd_t *dmem_pmd_in(pud_t table, unsigned long addr);
pte_t *dmem_pte_in(pmd_t table, unsigned long addr);

/* VMAs and mmap descriptors. */
bool dmem_desc_is_shared(const struct vm_area_desc *desc);
void dmem_desc_set_pageless(struct vm_area_desc *desc);
void dmem_vma_start_write(struct vm_area_struct *vma);
bool dmem_vma_is_moving(const struct vm_area_struct *vma);
void dmem_lock_vmas(struct address_space *mapping);
void dmem_unlock_vmas(struct address_space *mapping);
struct vm_area_struct *dmem_first_vma(struct address_space *mapping);
struct vm_area_struct *dmem_next_vma(struct vm_area_struct *vma);

/* Files. */
void dmem_file_set_mapping(struct file *file, struct inode *inode);
bool dmem_embedded_cdev_is_held(const struct inode *dax_inode);
void dmem_notice_refused_mmap(const char *device, const char *why,
			      unsigned long pgoff, unsigned long pages);

/* Physical memory. */
bool dmem_first_valid_pfn(unsigned long start, unsigned long nr,
			  unsigned long *pfn);

void dmem_clear(void *to, unsigned long len);
bool dmem_stands_test(void *at, unsigned long len);
unsigned long dmem_copy_mc(void *to, const void *from, unsigned long len);

/* Memory errors. */
typedef void (*dmem_heard_fn)(void *data, unsigned long pfn, int type,
			      int result);
void *dmem_watch_failures(dmem_heard_fn heard);
void dmem_unwatch_failures(void *watched, dmem_heard_fn heard);
void dmem_notice_poison(u64 page);
unsigned long dmem_mce_address(const struct mce *mce);

void *dmem_zero_page(void);
unsigned long dmem_phys_of(const void *page);

/* DMA. */
bool dmem_dma_is_lent(void);
int dmem_mm_count(const struct mm_struct *mm);
int dmem_mm_references(struct mm_struct *mm);

/* Work. */
struct task_struct *dmem_current(void);
struct workqueue_struct *dmem_alloc_workqueue(const char *name);
void dmem_cond_resched(void);

/* Layouts as gcc sees them; the module refuses to load where Rust differs. */
struct dmem_layout {
	unsigned long dev_dax_size;
	unsigned long dev_dax_dev;
	unsigned long dev_dax_nr_range;
	unsigned long dev_dax_ranges;
	unsigned long dev_dax_range_size;
	unsigned long dax_device_driver_size;
	unsigned long dax_device_driver_probe;
	unsigned long vm_fault_size;
	unsigned long vm_operations_size;
	unsigned long file_operations_size;
	unsigned long vm_area_desc_size;
	unsigned long inode_size;
};

extern const struct dmem_layout dmem_layout;

#endif /* __DAX_DMEM_HELPERS_H__ */
