/*
 * forecast_json: a forecast as members of a JSON object, under the names of DESIGN section 6: the
 * same for plan --json and for the rows of sweep.
 */
#ifndef SPILLWAY_TOOLS_FORECAST_JSON_H
#define SPILLWAY_TOOLS_FORECAST_JSON_H

#include "offload/forecast.h"

struct json_value;

/* What is asked: machine, budgets, the size of a step. Rates are of one drive. */
void forecast_asked_to_json(struct json_value *object, const struct place_spec *spec);

/* What comes of it, the question included. */
void forecast_to_json(struct json_value *object, const struct forecast *forecast);

#endif
