#include "tests/shared/choices.h"

#include "core/rng.h"
#include "offload/place_search.h"
#include "tests/shared/check.h"
#include "tools/machine.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static const struct config by_hand[] = {
    {"qwen-1.5b", CONFIG_QWEN2, 28, 1536, 12, 2, 128, 8960, 32768, 151936, 1e-6f, true, false},
    {"tiny-llama", CONFIG_LLAMA, 3, 64, 4, 2, 16, 160, 32, 300, 1e-5f, false, false},
    {"tiny-tied", CONFIG_LLAMA, 3, 64, 4, 2, 16, 160, 32, 300, 1e-5f, true, false},
};

void choices_model(struct tiny_model *model, const char *name, uint64_t chunk, uint64_t tile)
{
    struct err err;
    const struct config *found = NULL;
    for (size_t i = 0; i < ARRAY_COUNT(by_hand); i++)
        if (strcmp(by_hand[i].name, name) == 0)
            found = &by_hand[i];
    if (found)
        model->config = *found;
    else if (config_from_name(&model->config, name, &err) != 0)
        fail_msg("%s", err.message);
    tensors_init(&model->tensors, &model->config);
    model->chunk = chunk;
    model->tile = tile;
    if (chunk)
        layout_init_sized(&model->layout, &model->tensors, MOMENTS_FP32, chunk, tile);
    else
        layout_init(&model->layout, &model->tensors, MOMENTS_FP32);
}

void choices_machine(struct profile *profile, const char *name)
{
    struct err err;
    profile_init(profile, 8);
    if (strcmp(name, "cpu") == 0)
        return;
    struct machine_request request = {.machine = name};
    if (machine_compose(profile, &request, &err) != 0)
        fail_msg("%s", err.message);
}

void choices_spec(struct place_spec *spec, const struct tiny_model *model,
                  const struct profile *profile, uint32_t seq, uint32_t batch, uint32_t accum)
{
    *spec = (struct place_spec){
        .config = &model->config,
        .layout = &model->layout,
        .precision = PRECISION_BF16,
        .seq = seq,
        .batch = batch,
        .accum = accum,
        .ram_budget = profile->ram.bytes ? profile->ram.bytes : 64 * GIB,
        .nvme_budget = UINT64_MAX,
        .overhead_bytes = GIB,
        .nvme = true,
        .clip = true,
        .resident_planes = PLACE_RESIDENT_AUTO,
        .profile = profile,
    };
    if (!profile->device.is_cpu)
        spec->vram_budget = profile->device.vram_bytes - profile->device.reserve_bytes;
}

/* Numbers of one seed, one after the other. */
struct draws {
    uint64_t seed, count;
};

static uint32_t draw(struct draws *draws, uint32_t bound)
{
    return (uint32_t)rng_below(draws->seed, RNG_STREAM_SAMPLE, draws->count++, bound);
}

static void shuffle(struct draws *draws, uint8_t *order, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        order[i] = (uint8_t)i;
    for (uint32_t i = count; i > 1; i--) {
        uint32_t j = draw(draws, i);
        uint8_t kept = order[i - 1];
        order[i - 1] = order[j];
        order[j] = kept;
    }
}

/* Nothing, everything, little, or anything between. */
static uint32_t draw_level(struct draws *draws, uint32_t most)
{
    switch (draw(draws, 6)) {
    case 0:
        return 0;
    case 1:
    case 2:
        return most;
    case 3:
        return draw(draws, most / 8 + 1);
    default:
        return draw(draws, most + 1);
    }
}

static bool fits(struct place *place, const struct place_choice *choice)
{
    return place_measure(place, choice) && place->nvme_bytes <= place->spec.nvme_budget;
}

void choices_random(struct place *place, uint64_t seed, struct place_choice *choice)
{
    struct draws draws = {seed, 0};
    uint8_t order[KNOB_COUNT];
    bool poor = draw(&draws, 10) == 0;
    place_least_choice(place, choice);
    /* Planes have several turns: one is taken only where those before it are. */
    for (uint32_t turn = 0; turn < 2; turn++) {
        shuffle(&draws, order, KNOB_COUNT);
        for (uint32_t i = 0; i < KNOB_COUNT; i++) {
            enum place_knob knob = order[i];
            uint32_t level = draw_level(&draws, place_knob_max(place, knob));
            struct place_choice before = *choice;
            place_grow(place, choice, knob, poor ? level / 8 : level);
            if (!fits(place, choice))
                *choice = before;
        }
    }
    assert_true(fits(place, choice));
}

void choices_spend(struct place *place, uint64_t seed, struct place_choice *choice)
{
    struct draws draws = {seed, 0};
    struct place_limits limits;
    place_limits_init(place, &limits);
    for (uint32_t k = 0; k < KNOB_COUNT; k++)
        if (k != KNOB_STATE_STAGES)
            limits.most[k] = draw_level(&draws, place_knob_max(place, k));
    limits.inner_last = draw(&draws, 2);
    limits.block_slots_first = draw(&draws, 2) ? place_knob_max(place, KNOB_BLOCK_SLOTS) / 2 : 0;
    place_spend(place, &limits, choice);
    assert_true(place_measure(place, choice));
}

const char *choices_text(const struct place_choice *choice, char *text)
{
    size_t used = 0;
    text[0] = '\0';
    for (uint32_t k = 0; k < KNOB_COUNT; k++)
        if (choice->knob[k])
            used += (size_t)snprintf(text + used, CHOICES_TEXT_MAX - used, "%s%s %u",
                                     used ? ", " : "", place_knob_name[k], choice->knob[k]);
    return text;
}

/* ---- Scenes -----------------------------------------------------------------------------------
 */

#define SLOWER 0.005 /* that a better machine may be */

const struct choices_scene choices_scenes[CHOICES_SCENES] = {
    {"gpt2-124m", "cpu", 1024, 4, 2, {1.9, 6}, 0, PRECISION_BF16, true},
    {"gpt2-124m", "cpu", 1024, 1, 8, {1.9, 6}, 1.5, PRECISION_FP32, true},
    {"gpt2-1558m", "rtx3060-7950x3d-128", 1024, 8, 1, {6, 40}, 0, PRECISION_BF16, true},
    {"gpt2-1558m", "rtx4090-13900k-128", 512, 2, 1, {6, 40}, 8, PRECISION_FP32, false},
    {"llama-8b", "cpu", 1024, 1, 1, {8, 128}, 0, PRECISION_BF16, true},
    {"llama-8b", "rtx3060-7950x3d-128", 512, 1, 8, {12, 128}, 0, PRECISION_BF16, true},
    {"qwen-32b", "rtx4090-7950x3d-192", 2048, 4, 1, {30, 192}, 0, PRECISION_BF16, true},
    {"llama-70b", "rtx3090-7950x3d-128", 2048, 1, 1, {40, 256}, 0, PRECISION_BF16, true},
};

static uint64_t gib(double count)
{
    return (uint64_t)(count * (double)GIB);
}

void choices_open(struct choices_example *example, const struct choices_scene *scene)
{
    example->scene = scene;
    choices_model(&example->model, scene->model, 0, 0);
    choices_machine(&example->profile, scene->machine);
    choices_spec(&example->spec, &example->model, &example->profile, scene->seq, scene->batch,
                 scene->accum);
    example->spec.precision = scene->precision;
    example->spec.clip = scene->clip;
    if (scene->vram_gib > 0)
        example->spec.vram_budget = gib(scene->vram_gib);
}

void choices_close(struct choices_example *example)
{
    tiny_model_deinit(&example->model);
}

void choices_set_ram(struct choices_example *example, double part)
{
    const double *ends = example->scene->ram_gib;
    example->spec.ram_budget = gib(ends[0] * pow(ends[1] / ends[0], part));
}

double choices_search(const struct place_spec *spec, struct place_choice *choice)
{
    struct place place;
    struct err err;
    if (place_choose(&place, spec, &err) != 0)
        fail_msg("%s: %s", spec->config->name, err.message);
    double seconds = place.predicted_s;
    assert_true(seconds > 0 && isfinite(seconds));
    assert_in_range(place.evaluations, 1, PLACE_SEARCH_EVALUATIONS_MAX);
    if (choice)
        *choice = place.choice;
    place_deinit(&place);
    return seconds;
}

void choices_climb(struct choices_ladder *ladder, const struct choices_example *example)
{
    const struct choices_scene *scene = example->scene;
    double seconds = choices_search(&example->spec, NULL);
    if (seconds > ladder->best_s * (1 + SLOWER))
        fail_msg("%s on %s, T %u, B %u, M %u, RAM %.2f GiB: %s makes a step of %.4f s one of %.4f",
                 scene->model, scene->machine, scene->seq, scene->batch, scene->accum,
                 (double)example->spec.ram_budget / (double)GIB, ladder->what, ladder->best_s,
                 seconds);
    ladder->best_s = fmin(ladder->best_s, seconds);
}
