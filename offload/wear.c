#include "offload/wear.h"

#include "core/log.h"

#include <math.h>

static uint64_t resident_bytes(const struct place *place)
{
    uint64_t bytes = place->spec.layout->slot_bytes;
    for (uint32_t c = 0; c < place->spec.layout->chunk_count; c++)
        for (uint32_t p = 0; p < PLANE_COUNT; p++)
            bytes -= place_plane_spilled(place, c, p);
    return bytes;
}

void wear_of(struct wear *wear, const struct place *place, uint64_t step_bytes, double step_s)
{
    const struct place_spec *spec = &place->spec;
    const struct profile_ssd *ssd = &spec->profile->ssd;
    double step = (double)step_bytes;
    ASSERT(step_s > 0);
    *wear = (struct wear){.commit_bytes = resident_bytes(place), .days_left = INFINITY};
    if (spec->checkpoint_every)
        step += (double)wear->commit_bytes / spec->checkpoint_every;
    wear->bytes_per_day = step / step_s * WEAR_DAY_S;
    wear->endurance_bytes = (double)ssd->endurance_bytes * ssd->count;
    if (wear->endurance_bytes > 0 && wear->bytes_per_day > 0)
        wear->days_left = wear->endurance_bytes / wear->bytes_per_day;
}

void wear_warn(const struct wear *wear)
{
    if (wear->days_left >= WEAR_WARN_DAYS)
        return;
    log_warn("training day and night writes %.2f TB a day, which uses up the %.0f TB that the "
             "drive is rated for in %.0f days; what helps: more RAM (--ram-budget), more tokens a "
             "step (--accum), fewer commits (--checkpoint-every), smaller moments "
             "(--optimizer-state), or a limit (--write-budget)",
             wear->bytes_per_day / 1e12, wear->endurance_bytes / 1e12, wear->days_left);
}
