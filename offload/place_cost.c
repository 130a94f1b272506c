/*
 * place_cost: what a placement costs at least, in closed form. Deliberately written without looking
 * at any plan, so that the two can be compared (tests/offload/test_place.c does).
 */
#include "offload/place.h"

#include "core/log.h"
#include "model/graph.h"
#include "offload/plan.h"

/* Unpadded bytes of planes [0, planes) of a chunk that are not in RAM. */
static uint64_t spilled(const struct place *place, uint32_t chunk, uint32_t planes)
{
    const struct layout *layout = place->spec.layout;
    uint64_t bytes = 0, real = layout->chunks[chunk].real_count;
    for (uint32_t p = 0; p < planes; p++) {
        uint64_t away = place_plane_spilled(place, chunk, p);
        bytes += MIN(away, layout_least_bytes(layout, real, p));
    }
    return bytes;
}

/* Unpadded parameters of a chunk whose state is not on the device. */
static uint64_t host_real(const struct place *place, uint32_t chunk)
{
    return MIN(place->spec.layout->chunks[chunk].real_count, place_host_count(place, chunk));
}

/* bf16 needs hi, fp32 hi and lo. */
static uint64_t weight_spilled(const struct place *place, uint32_t chunk)
{
    return spilled(place, chunk, place->spec.precision == PRECISION_BF16 ? 1 : 2);
}

struct weight_cost {
    uint64_t ssd, h2d;
};

static void add_weight(const struct place *place, uint32_t first, uint32_t count,
                       struct weight_cost *cost)
{
    for (uint32_t c = first; c < first + count; c++) {
        cost->ssd += weight_spilled(place, c);
        if (place->separate_device)
            cost->h2d += host_real(place, c) * place->weight_bytes;
    }
}

/* Unpadded parameters of a chunk that are streamed. */
static uint64_t streamed_real(const struct place *place, uint32_t chunk)
{
    return MIN(place->spec.layout->chunks[chunk].real_count, place_streamed_count(place, chunk));
}

/* A streamed chunk comes with its gradient and goes. Returns the bytes of its weights, which are
 * made there on the way. */
static uint64_t add_streamed(const struct place *place, struct place_least *least)
{
    const struct layout *layout = place->spec.layout;
    uint64_t weights = 0;
    for (uint32_t c = 0; c < layout->chunk_count; c++) {
        uint64_t real = streamed_real(place, c), state = 0;
        for (uint32_t p = 0; p < PLANE_COUNT && real; p++)
            state += layout_least_bytes(layout, real, p);
        least->h2d_bytes += state + real * place->gradient_bytes;
        least->d2h_bytes += state;
        weights += real * place->weight_bytes;
    }
    return weights;
}

/* What passes over the tiles bring to a device that holds the last tile_slots of them. wte goes up
 * for the embedding, the head's tiles down and up again. Where they are the same, what the device
 * holds from one pass are the first of the next; a head of its own is brought whole on its way
 * down.
 */
static void add_tiles(const struct place *place, bool down, struct weight_cost *cost)
{
    const struct layout *layout = place->spec.layout;
    bool held = place->tile_slots >= layout_tile_count(layout);
    if (layout->tied ? held : held || down)
        return;
    uint32_t kept = MIN(place->tile_slots, layout->tile_count);
    uint32_t first = down ? 0 : kept;
    for (uint32_t t = first; t < first + layout->tile_count - kept; t++) {
        const struct layout_tile *tile = &layout->tiles[layout_head_tile(layout, t)];
        add_weight(place, tile->first_chunk, tile->chunk_count, cost);
    }
}

static void add_activations(const struct place *place, bool backward, struct place_least *least)
{
    uint64_t rows = (uint64_t)place->spec.batch * place->spec.seq * place->spec.accum;
    uint64_t x = rows * place->spec.config->channels * 4;
    uint64_t inner = place->inner_bytes * place->spec.accum;
    if (!backward)
        return;
    for (uint32_t l = 0; l < place->spec.config->layers; l++) {
        uint64_t moved = 0, spilled = 0;
        uint8_t where[2] = {place->x_where[l], place->inner_where[l]};
        uint64_t bytes[2] = {x, inner};
        for (int i = 0; i < 2; i++) {
            if (where[i] == WHERE_RAM || where[i] == WHERE_NVME)
                moved += bytes[i];
            if (where[i] == WHERE_NVME)
                spilled += bytes[i];
        }
        least->ssd_read_bytes += spilled;
        least->ssd_write_bytes += spilled;
        if (place->separate_device) {
            least->h2d_bytes += moved;
            least->d2h_bytes += moved;
        }
    }
}

static void add_gradients(const struct place *place, bool update, bool backward,
                          struct place_least *least)
{
    const struct layout *layout = place->spec.layout;
    for (uint32_t c = 0; c < layout->chunk_count; c++) {
        uint64_t bytes = layout->chunks[c].real_count * place->gradient_bytes;
        bool stored = !place->immediate;
        uint64_t away = stored ? MIN(place_gradient_spilled(place, c), bytes) : 0;
        if (update)
            least->ssd_read_bytes += away;
        if (backward)
            least->ssd_write_bytes += away;
        if (backward && place->separate_device)
            least->d2h_bytes += host_real(place, c) * place->gradient_bytes;
    }
    /* What the device has updated says whether it is still finite. */
    uint32_t flag_runs = (place->choice.knob[KNOB_DEVICE] > 0) + (place->stream_stages > 0);
    if (update || (place->immediate && backward))
        least->d2h_bytes += flag_runs * (uint64_t)layout->chunk_count * sizeof(uint32_t);
    if (!backward || !layout->tied || place->tile_gradient_slots >= layout->tile_count)
        return;
    for (uint32_t c = 0; c < layout->wpe_first_chunk; c++) {
        uint64_t bytes = layout->chunks[c].real_count * 4;
        if (place->separate_device) {
            least->d2h_bytes += bytes;
            least->h2d_bytes += bytes;
        }
        uint64_t away = MIN(place_stash_spilled(place, c), bytes);
        least->ssd_write_bytes += away;
        least->ssd_read_bytes += away;
    }
}

void place_least(const struct place *place, bool update, bool forward, bool backward,
                 struct place_least *least)
{
    const struct layout *layout = place->spec.layout;
    uint32_t layers = place->spec.config->layers;
    *least = (struct place_least){0};
    /* Without clipping, backward updates: forward has nothing to feed on. */
    if (update || (place->immediate && backward))
        for (uint32_t c = 0; c < layout->chunk_count; c++) {
            least->ssd_read_bytes += spilled(place, c, PLANE_COUNT);
            least->ssd_write_bytes += spilled(place, c, PLANE_COUNT);
        }
    add_gradients(place, update, backward, least);
    uint64_t made = update ? add_streamed(place, least) : 0;
    if (!forward)
        return;
    struct weight_cost cost = {0};
    add_weight(place, 0, layout->chunk_count, &cost);
    if (update)
        cost.ssd = 0; /* forward takes the weights from the update that has just made them, */
    cost.h2d -= made; /* on the device those of what is streamed */
    if (!place->weights_in_place) {
        add_tiles(place, true, &cost);
        if (backward) {
            add_tiles(place, false, &cost);
            uint32_t held = MIN(place->block_slots, layers);
            add_weight(place, layout->group_first_chunk[1], (layers - held) * layout->block_chunks,
                       &cost);
        }
    }
    least->ssd_read_bytes += cost.ssd;
    least->h2d_bytes += cost.h2d;
    uint64_t rows = (uint64_t)place->spec.batch * place->spec.seq * place->spec.accum;
    if (place->separate_device) {
        least->h2d_bytes += rows * 2 * 4;
        least->d2h_bytes += rows * 4;
        if (backward)
            least->d2h_bytes += (uint64_t)layout->chunk_count * PLAN_SQUARES_PER_CHUNK * 8;
    }
    add_activations(place, backward, least);
}

void place_flops(const struct place_spec *spec, uint64_t *forward, uint64_t *backward)
{
    uint64_t rows = (uint64_t)spec->batch * spec->seq * spec->accum;
    const struct config *config = spec->config;
    uint64_t block =
        graph_block_flops(config, rows) + graph_attention_flops(config, rows, spec->seq);
    uint64_t head = graph_head_flops(config, rows, config->vocab);
    *forward = block * config->layers + head;
    *backward = 2 * block * config->layers + 2 * head;
}

static void print_tier(const char *name, const uint64_t *content, uint64_t total, uint64_t budget,
                       FILE *out)
{
    char text[LOG_BYTES_MAX], limit[LOG_BYTES_MAX];
    fprintf(out, "  %-6s %10s", name, log_bytes(text, total));
    if (budget != UINT64_MAX)
        fprintf(out, " of %-10s", log_bytes(limit, budget));
    for (uint32_t c = 0; c < CONTENT_COUNT; c++)
        if (content[c])
            fprintf(out, "  %s %s", plan_content_name[c], log_bytes(text, content[c]));
    fprintf(out, "\n");
}

static uint32_t count_where(const uint8_t *where, uint32_t count, enum place_where wanted)
{
    uint32_t found = 0;
    for (uint32_t i = 0; i < count; i++)
        found += where[i] == wanted;
    return found;
}

void place_print(const struct place *place, const struct plan_memory *memory, FILE *out)
{
    char text[LOG_BYTES_MAX];
    fprintf(out, "Placement\n");
    if (place->separate_device)
        print_tier("VRAM", memory->content_bytes[TIER_DEVICE], place->vram_bytes,
                   place->spec.vram_budget, out);
    print_tier("RAM", memory->content_bytes[TIER_RAM], place->ram_bytes, place->spec.ram_budget,
               out);
    fprintf(out, "         of which the program itself %s\n",
            log_bytes(text, place->spec.overhead_bytes));
    if (place->spec.nvme) {
        print_tier("NVMe", memory->content_bytes[TIER_NVME], place->nvme_bytes,
                   place->spec.nvme_budget, out);
        fprintf(out, "         of which the %s: %s\n",
                place->spec.one_slot ? "one slot of all state"
                                     : "two slots of all state, one of them the last commit's",
                log_bytes(text, place_state_bytes(&place->spec)));
    }
    if (place->spec.one_slot)
        fprintf(out, "  " PLACE_ONE_SLOT_NOTE "\n");
    place_print_choice(place, out);
}

void place_print_choice(const struct place *place, FILE *out)
{
    const struct layout *layout = place->spec.layout;
    uint32_t layers = place->spec.config->layers;
    fprintf(out, "  state in RAM:");
    for (uint32_t p = 0; p < PLANE_COUNT; p++)
        fprintf(out, " %s %.0f %%", layout_plane_name[p],
                100.0 * (double)place->resident_plane_chunks[p] / layout->chunk_count);
    uint32_t away = 0;
    for (uint32_t c = 0; c < layout->chunk_count; c++)
        away += !place->gradient_in_ram[c] && !place->on_device[c];
    if (place->immediate)
        fprintf(out, "; no gradients stored (--clip 0)\n");
    else
        fprintf(out, "; gradients spilled: %.0f %%%s\n", 100.0 * away / layout->chunk_count,
                place->gradients_shared ? ", of blocks where activations were" : "");
    if (place->choice.knob[KNOB_DEVICE])
        fprintf(out, "  state on the device, and updated there: %.3g %%\n",
                100.0 * place->choice.knob[KNOB_DEVICE] / layout->chunk_count);
    uint64_t streamed = place_streamed_taken(place, &place->choice, layout->chunk_count);
    if (streamed || place->spec.update == UPDATE_DEVICE)
        fprintf(out, "  state in RAM that is streamed through the device to be updated: %.3g %%\n",
                100.0 * (double)streamed / layout->chunk_count);
    static const char *const names[] = {"on the device", "in RAM", "on NVMe", "recomputed"};
    for (int i = 0; i < 2; i++) {
        fprintf(out, "  %s of %u layers:", i ? "inner activations" : "inputs", layers);
        for (uint32_t w = WHERE_DEVICE; w <= WHERE_RECOMPUTE; w++) {
            uint32_t n = count_where(i ? place->inner_where : place->x_where, layers, w);
            if (n)
                fprintf(out, " %u %s", n, names[w]);
        }
        fprintf(out, "\n");
    }
    if (place->head_once)
        fprintf(out, "  the head's logits are computed once: its tiles are on the device\n");
    fprintf(out, "  prefetch %u, block slots %u, in transit %u states, %u gradients\n",
            place->spec.prefetch, place->block_slots, place->state_stages, place->gradient_stages);
}
