/*
 * args: command-line options by a table, the same manner for every command.
 *
 * Each command lists its options; args_parse fills their targets, prints --help from the same
 * table, and refuses unknown options (naming the nearest known one), missing values and numbers
 * out of range with ERR_USAGE. "--name value" and "--name=value" are both read.
 */
#ifndef SPILLWAY_CORE_ARGS_H
#define SPILLWAY_CORE_ARGS_H

#include "core/err.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum args_kind {
    ARGS_FLAG,     /* bool *target = true */
    ARGS_STRING,   /* const char **target, borrowed from argv */
    ARGS_U64,      /* uint64_t *target, decimal */
    ARGS_DOUBLE,   /* double *target, finite, >= 0 */
    ARGS_SIZE,     /* uint64_t *target, with K M G T (powers of 1024), fractions allowed: 1.5G */
    ARGS_DAILY,    /* uint64_t *target, as ARGS_SIZE, with or without "/day" behind it */
    ARGS_DURATION, /* double *target in seconds, with s m h d: 8h, 90m */
};

struct args_option {
    const char *name; /* without the dashes */
    enum args_kind kind;
    void *target;
    const char *value_name; /* for --help, e.g. "SIZE"; NULL for flags */
    const char *help;       /* one line, with the default in words */
    bool *given;            /* may be NULL; set to true when the option was given */
};

struct args_command {
    const char *name;    /* "train" */
    const char *summary; /* one sentence */
    const char *usage;   /* "--model NAME --data DIR --out RUN [options]" */
    const char *example; /* a command that works */
    const struct args_option *options;
    size_t option_count;
    const char **positional; /* filled with what is not an option; NULL when none is allowed */
    size_t positional_max;
    size_t positional_count; /* out */
};

/* 0; 1 after printing --help to stdout (the caller exits 0); or ERR_USAGE. argv[0] is skipped. */
int args_parse(struct args_command *command, int argc, char **argv, struct err *err);

/* "312M" -> 327155712. */
int args_parse_size(const char *text, uint64_t *bytes, struct err *err);

/* "2T/day" or "2T" -> 2199023255552. */
int args_parse_daily(const char *text, uint64_t *bytes, struct err *err);

#endif
