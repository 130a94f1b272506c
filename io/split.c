#include "io/split.h"
#include "core/base.h"

void split_notice(struct split *split, uint64_t hash)
{
    split->hash_min = split->documents == 0 ? hash : MIN(split->hash_min, hash);
    split->hash_max = split->documents == 0 ? hash : MAX(split->hash_max, hash);
    split->documents++;
}

void split_decide(struct split *split, double val_fraction)
{
    split->tail_start = UINT64_MAX;
    split->val_below = 0;
    if (val_fraction == 0)
        return;
    if (split->hash_min < split->hash_max) {
        uint64_t asked = (uint64_t)(val_fraction * 0x1p64);
        split->val_below = MIN(MAX(asked, split->hash_min + 1), split->hash_max);
        return;
    }
    split->tail_start = split->text_bytes - (uint64_t)(val_fraction * (double)split->text_bytes);
}
