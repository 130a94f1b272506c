/*
 * record: RUN/config.json, everything needed to repeat a run: the model, its precision, the options
 * and the checksum of the text, under a hash of their own: a flipped bit in a learning rate would
 * train something else, silently. Written at the start of a run, read by --resume, sample, eval,
 * export and check.
 */
#ifndef SPILLWAY_OFFLOAD_RECORD_H
#define SPILLWAY_OFFLOAD_RECORD_H

#include "core/err.h"

#define RECORD_FILE "config.json"

struct json_value;

/* Adds the hash to root and writes it durably. */
int record_save(struct json_value *root, const char *run_dir, struct err *err);

/* The record, owned by the caller (json_free), in *root. 1, with *root NULL, when there is none;
 * ERR_CORRUPT when it does not agree with its hash. */
int record_load(struct json_value **root, const char *run_dir, struct err *err);

#endif
