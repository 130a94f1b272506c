#include "offload/update.h"

/* What optim_update takes of the parameters from `first` on, all but the moments. */
static struct optim_range range_of(const struct update *update, uint64_t first, uint64_t count,
                                   bool decay)
{
    return (struct optim_range){
        .hi = (uint16_t *)update->plane[PLANE_HI] + first,
        .lo = (int16_t *)update->plane[PLANE_LO] + first,
        .gradient = update->gradient + first * precision_bytes(update->precision),
        .count = count,
        .decay = decay,
    };
}

/* A part whose moments are FP32: they are updated where they lie. */
static bool update_in_place(const struct update *update, uint32_t first, uint32_t end)
{
    bool finite = true;
    for (uint32_t s = first; s < end; s++) {
        const struct update_segment *segment = &update->segments[s];
        struct optim_range range = range_of(update, segment->first, segment->count, segment->decay);
        range.m = (float *)update->plane[PLANE_M] + segment->first;
        range.v = (float *)update->plane[PLANE_V] + segment->first;
        finite &= optim_update(&range, update->step, update->precision);
    }
    return finite;
}

/* A part whose moments are smaller, block by block: loaded as FP32, updated, stored again. A block
 * may end one segment and begin others. */
static bool update_blocks(const struct update *update, uint32_t first, uint32_t end)
{
    const struct moments *moments = update->moments;
    uint64_t stored = moments_block_bytes(moments->kind);
    struct moments_values values;
    bool finite = true;
    uint64_t at = first < end ? update->segments[first].first / MOMENTS_BLOCK * MOMENTS_BLOCK : 0;
    for (uint32_t s = first; s < end; at += MOMENTS_BLOCK) {
        uint8_t *m = update->plane[PLANE_M] + at / MOMENTS_BLOCK * stored;
        uint8_t *v = update->plane[PLANE_V] + at / MOMENTS_BLOCK * stored;
        struct moments_place place = {update->step->step, update->origin + at};
        moments_load(moments, &values, m, v);
        while (s < end && update->segments[s].first < at + MOMENTS_BLOCK) {
            const struct update_segment *segment = &update->segments[s];
            uint64_t from = MAX(at, segment->first), to = segment->first + segment->count;
            struct optim_range range =
                range_of(update, from, MIN(to, at + MOMENTS_BLOCK) - from, segment->decay);
            range.m = values.m + (from - at);
            range.v = values.v + (from - at);
            finite &= optim_update(&range, update->step, update->precision);
            if (to > at + MOMENTS_BLOCK)
                break; /* it goes on in the next block */
            s++;
        }
        finite &= moments_store(moments, &values, m, v, &place);
    }
    return finite;
}

bool update_part(const struct update *update, uint32_t part)
{
    uint64_t start = part * LAYOUT_PART_PARAMETERS;
    uint32_t first = 0;
    while (first < update->segment_count && update->segments[first].first < start)
        first++;
    uint32_t end = first;
    while (end < update->segment_count &&
           update->segments[end].first < start + LAYOUT_PART_PARAMETERS)
        end++;
    return update->moments->kind == MOMENTS_FP32 ? update_in_place(update, first, end)
                                                 : update_blocks(update, first, end);
}
