#include "offload/stripe.h"

#include "core/mem.h"

#include <stdio.h>
#include <string.h>

/* ---- Files ----------------------------------------------------------------------------------- */

int stripe_files_one(struct stripe_files *files, const char *path, struct err *err)
{
    files->count = 1;
    files->share[0] = 1;
    if (strlen(path) >= sizeof(files->path[0]))
        return err_set(err, ERR_INPUT, "the path %s is too long", path);
    strcpy(files->path[0], path);
    return 0;
}

static bool has_path(const struct stripe_files *files, const char *path)
{
    for (uint32_t d = 0; d < files->count; d++)
        if (strcmp(files->path[d], path) == 0)
            return true;
    return false;
}

bool stripe_files_same(const struct stripe_files *a, const struct stripe_files *b)
{
    bool same = a->count == b->count;
    for (uint32_t d = 0; d < a->count && same; d++)
        same = has_path(b, a->path[d]);
    return same;
}

char *stripe_files_text(const struct stripe_files *files, char *text, size_t bytes)
{
    size_t used = 0;
    text[0] = 0;
    for (uint32_t d = 0; d < files->count && used < bytes; d++) {
        const char *before = d == 0 ? "" : d + 1 < files->count ? ", " : " and ";
        used += (size_t)snprintf(text + used, bytes - used, "%s%s", before, files->path[d]);
    }
    return text;
}

/* ---- Dealing --------------------------------------------------------------------------------- */

uint32_t stripe_next(struct stripe_deal *deal, const struct stripe_files *files, uint64_t bytes)
{
    uint32_t best = 0;
    ASSERT(files->count > 0 && files->count <= STRIPE_DRIVES_MAX);
    for (uint32_t d = 1; d < files->count; d++) {
        /* (dealt + bytes) / share, compared without division: below 2^64 up to petabytes. */
        uint64_t mine = (deal->dealt_bytes[d] + bytes) * files->share[best];
        uint64_t least = (deal->dealt_bytes[best] + bytes) * files->share[d];
        best = mine < least ? d : best;
    }
    deal->dealt_bytes[best] += bytes;
    return best;
}

void stripe_init(struct stripe *stripe, const struct layout *layout,
                 const struct stripe_files *files)
{
    struct stripe_deal deal = {0};
    for (uint32_t d = 0; d < files->count; d++)
        ASSERT(files->share[d] >= 1 && files->share[d] <= STRIPE_SHARE_MAX);
    *stripe = (struct stripe){
        .count = files->count,
        .drive = mem_alloc(layout->chunk_count, sizeof(*stripe->drive)),
        .offset = mem_alloc(layout->chunk_count, sizeof(*stripe->offset)),
    };
    for (uint32_t c = 0; c < layout->chunk_count; c++) {
        uint64_t bytes = layout_state_bytes(layout, layout->chunks[c].count);
        uint32_t d = stripe_next(&deal, files, bytes);
        stripe->drive[c] = (uint8_t)d;
        stripe->offset[c] = stripe->slot_bytes[d];
        stripe->slot_bytes[d] += bytes;
    }
}

void stripe_deinit(struct stripe *stripe)
{
    mem_free(stripe->drive);
    mem_free(stripe->offset);
    *stripe = (struct stripe){0};
}
