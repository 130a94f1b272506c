/* The plain flavour: nothing is watched. */
#include "internal.h"

const bool emulation_is_checked = false;

void detector_range(const void *memory, size_t bytes, bool write, uint32_t op)
{
    (void)memory, (void)bytes, (void)write, (void)op;
}

void detector_copied_down(const void *memory, size_t bytes, uint32_t op)
{
    (void)memory, (void)bytes, (void)op;
}

void detector_block_start(struct block *block)
{
    (void)block;
}

void detector_copy(void *shared, size_t bytes, bool begin)
{
    (void)shared, (void)bytes, (void)begin;
}

void detector_access(uintptr_t address, size_t bytes, bool write, bool atomic, void *from)
{
    (void)address, (void)bytes, (void)write, (void)atomic, (void)from;
}
