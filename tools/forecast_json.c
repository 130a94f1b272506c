#include "tools/forecast_json.h"

#include "core/json.h"

#include <math.h>

static void set_bytes(struct json_value *object, const char *name, uint64_t bytes)
{
    if (bytes <= INT64_MAX)
        json_set_int(object, name, (int64_t)bytes);
}

void forecast_asked_to_json(struct json_value *object, const struct place_spec *spec)
{
    const struct profile *profile = spec->profile;
    const struct profile_ssd *ssd = &profile->ssd;
    bool cpu = profile->device.is_cpu;
    json_set_string(object, "gpu", cpu ? "none" : profile->device.name);
    json_set_int(object, "gpus", cpu ? 0 : profile->device.count);
    json_set_string(object, "cpu", profile->cpu.name);
    set_bytes(object, "machine_ram_bytes", profile->ram.bytes);
    json_set_int(object, "ram_mts", profile->ram.mts);
    json_set_number(object, "ram_bytes_per_s", profile->ram.bytes_per_s);
    json_set_string(object, "ssd", spec->nvme ? ssd->name : "none");
    json_set_int(object, "ssds", spec->nvme ? ssd->count : 0);
    if (spec->nvme) {
        json_set_number(object, "ssd_read_bytes_per_s", ssd->read_bytes_per_s);
        json_set_number(object, "ssd_write_bytes_per_s", ssd->write_bytes_per_s);
    }
    set_bytes(object, "ram_budget_bytes", spec->ram_budget);
    set_bytes(object, "vram_budget_bytes", spec->vram_budget);
    if (spec->write_budget)
        set_bytes(object, "write_budget_bytes_per_day", spec->write_budget);
    json_set_string(object, "optimizer_state", moments_name[spec->layout->moments]);
    json_set_int(object, "batch", spec->batch);
    json_set_int(object, "accum", spec->accum);
    json_set_int(object, "seq", spec->seq);
    json_set_int(object, "tokens",
                 (int64_t)spec->batch * spec->seq * spec->accum * profile->device.count);
}

void forecast_to_json(struct json_value *object, const struct forecast *f)
{
    const struct place *place = &f->place;
    struct json_value *busy = json_new_object();
    forecast_asked_to_json(object, &place->spec);
    json_set_number(object, "predicted_s", f->predicted_s);
    json_set_number(object, "bound_s", f->bound.seconds);
    json_set_string(object, "bound_lane", plan_lane_name[f->bound.lane]);
    json_set_number(object, "tokens_per_s", forecast_tokens_per_s(f));
    set_bytes(object, "ram_bytes", place->ram_bytes);
    set_bytes(object, "vram_bytes", place->vram_bytes);
    set_bytes(object, "nvme_bytes", place->spec.nvme ? place->nvme_bytes : 0);
    set_bytes(object, "overhead_bytes", place->spec.overhead_bytes);
    set_bytes(object, "h2d_bytes", f->bytes[LANE_H2D]);
    set_bytes(object, "d2h_bytes", f->bytes[LANE_D2H]);
    set_bytes(object, "ssd_read_bytes", f->bytes[LANE_SSD_READ]);
    set_bytes(object, "ssd_write_bytes", f->bytes[LANE_SSD_WRITE]);
    set_bytes(object, "h2d_least_bytes", f->least.h2d_bytes);
    set_bytes(object, "d2h_least_bytes", f->least.d2h_bytes);
    set_bytes(object, "ssd_read_least_bytes", f->least.ssd_read_bytes);
    set_bytes(object, "ssd_write_least_bytes", f->least.ssd_write_bytes);
    for (uint32_t lane = 0; lane < LANE_COUNT; lane++)
        json_set_number(busy, plan_lane_name[lane], f->busy_s[lane]);
    json_set(object, "busy_s", busy);
    json_set_number(object, "ssd_written_bytes_per_day", f->wear.bytes_per_day);
    /* JSON has no infinity: what is not known, or without end, is absent. */
    if (isfinite(f->wear.days_left))
        json_set_number(object, "ssd_days_left", f->wear.days_left);
    if (isfinite(f->hiding_tokens))
        json_set_number(object, "hiding_tokens", f->hiding_tokens);
}
