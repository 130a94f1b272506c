#include "core/args.h"
#include "core/base.h"
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NAME_BYTES_MAX 64
#define HELP_COLUMN    28
#define HELP_COLUMNS   80 /* a terminal that nobody has widened */

/* Numbers */

/* A finite decimal number >= 0 at the start of text; *rest is what follows. "inf", "nan" and
 * hexadecimal numbers, which strtod would take, are none. */
static bool parse_decimal(const char *text, double *value, const char **rest)
{
    if (!isdigit((unsigned char)text[0]) && text[0] != '.')
        return false;
    if (text[0] == '0' && (text[1] == 'x' || text[1] == 'X'))
        return false;
    char *end;
    *value = strtod(text, &end);
    *rest = end;
    return end != text && isfinite(*value);
}

int args_parse_size(const char *text, uint64_t *bytes, struct err *err)
{
    double value;
    const char *rest;
    uint64_t unit = 1;
    bool good = parse_decimal(text, &value, &rest);
    if (good && *rest != 0) {
        static const char letters[] = "KMGT";
        const char *letter = strchr(letters, toupper((unsigned char)*rest));
        good = letter != NULL &&
               (rest[1] == 0 || strcasecmp(rest + 1, "B") == 0 || strcasecmp(rest + 1, "iB") == 0);
        if (good)
            unit = (uint64_t)1 << (10 * (letter - letters + 1));
    }
    /* 2^63 is far above any drive, and below what a double could round past 64 bits. */
    if (!good || value * (double)unit >= 0x1p63)
        return err_set(err, ERR_USAGE,
                       "\"%s\" is no size; write a number with K, M, G or T, such as 312M or 1.5G",
                       text);
    /* Whole numbers stay exact beyond a double's 53 bits. */
    uint64_t whole = strtoull(text, NULL, 10);
    if ((double)whole == value)
        *bytes = whole * unit;
    else
        *bytes = (uint64_t)(value * (double)unit);
    return 0;
}

int args_parse_daily(const char *text, uint64_t *bytes, struct err *err)
{
    static const char day[] = "/day";
    char size[32];
    struct err no_size;
    size_t length = strlen(text), tail = sizeof(day) - 1;
    if (length > tail && strcmp(text + length - tail, day) == 0)
        length -= tail;
    if (length < sizeof(size)) {
        snprintf(size, sizeof(size), "%.*s", (int)length, text);
        if (args_parse_size(size, bytes, &no_size) == 0)
            return 0;
    }
    return err_set(err, ERR_USAGE,
                   "\"%s\" is no size a day; write a number with K, M, G or T, such as 2T/day or "
                   "500G",
                   text);
}

static int parse_duration(const char *text, double *seconds, struct err *err)
{
    double value;
    const char *rest;
    double unit = 0;
    if (parse_decimal(text, &value, &rest)) {
        if (strcmp(rest, "") == 0 || strcmp(rest, "s") == 0)
            unit = 1;
        else if (strcmp(rest, "m") == 0)
            unit = 60;
        else if (strcmp(rest, "h") == 0)
            unit = 3600;
        else if (strcmp(rest, "d") == 0)
            unit = 86400;
    }
    if (unit == 0)
        return err_set(err, ERR_USAGE,
                       "\"%s\" is no time; write a number with s, m, h or d, such as 90m or 8h",
                       text);
    *seconds = value * unit;
    return 0;
}

static int parse_u64(const char *text, uint64_t *value, struct err *err)
{
    char *end;
    errno = 0;
    *value = strtoull(text, &end, 10);
    if (!isdigit((unsigned char)text[0]) || *end != 0 || errno != 0)
        return err_set(err, ERR_USAGE, "\"%s\" is no whole number", text);
    return 0;
}

static int parse_double(const char *text, double *value, struct err *err)
{
    const char *rest;
    if (!parse_decimal(text, value, &rest) || *rest != 0)
        return err_set(err, ERR_USAGE, "\"%s\" is no number of at least 0, such as 0.1 or 3e-4",
                       text);
    return 0;
}

static int parse_value(const struct args_option *option, const char *text, struct err *err)
{
    switch (option->kind) {
    case ARGS_FLAG:
        break;
    case ARGS_STRING:
        *(const char **)option->target = text;
        return 0;
    case ARGS_U64:
        return parse_u64(text, option->target, err);
    case ARGS_DOUBLE:
        return parse_double(text, option->target, err);
    case ARGS_SIZE:
        return args_parse_size(text, option->target, err);
    case ARGS_DAILY:
        return args_parse_daily(text, option->target, err);
    case ARGS_DURATION:
        return parse_duration(text, option->target, err);
    }
    ASSERT(!"a flag has no value to parse");
    return 0;
}

/* Names */

/* Levenshtein's distance, by the two-row recurrence. Both names below NAME_BYTES_MAX. */
static size_t edit_distance(const char *a, const char *b)
{
    size_t a_bytes = strlen(a), b_bytes = strlen(b);
    ASSERT(a_bytes < NAME_BYTES_MAX && b_bytes < NAME_BYTES_MAX);
    size_t row[NAME_BYTES_MAX];
    for (size_t j = 0; j <= b_bytes; j++)
        row[j] = j;
    for (size_t i = 1; i <= a_bytes; i++) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= b_bytes; j++) {
            size_t replaced = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            row[j] = MIN(replaced, MIN(row[j], row[j - 1]) + 1);
        }
    }
    return row[b_bytes];
}

static const char *nearest_name(const struct args_command *command, const char *name)
{
    if (strlen(name) >= NAME_BYTES_MAX)
        return NULL;
    const char *nearest = NULL;
    size_t least = SIZE_MAX;
    for (size_t i = 0; i < command->option_count; i++) {
        size_t distance = edit_distance(name, command->options[i].name);
        if (distance < least) {
            least = distance;
            nearest = command->options[i].name;
        }
    }
    return nearest != NULL && least <= MAX(strlen(nearest), strlen(name)) / 2 ? nearest : NULL;
}

static int unknown_option(const struct args_command *command, const char *name, struct err *err)
{
    const char *nearest = nearest_name(command, name);
    if (nearest != NULL)
        return err_set(err, ERR_USAGE, "unknown option --%s; did you mean --%s?", name, nearest);
    return err_set(err, ERR_USAGE, "unknown option --%s; see spillway %s --help", name,
                   command->name);
}

static const struct args_option *find_option(const struct args_command *command, const char *name)
{
    for (size_t i = 0; i < command->option_count; i++)
        if (strcmp(command->options[i].name, name) == 0)
            return &command->options[i];
    return NULL;
}

/* Help */

/* Text from HELP_COLUMN on, in lines of at most HELP_COLUMNS where its words allow. */
static void print_wrapped(const char *text)
{
    const size_t width = HELP_COLUMNS - HELP_COLUMN;
    while (strlen(text) > width) {
        size_t end = width;
        while (end > 0 && text[end] != ' ')
            end--;
        if (end == 0)
            end = strcspn(text, " ");
        if (text[end] == 0)
            break;
        printf("%.*s\n%*s", (int)end, text, HELP_COLUMN, "");
        text += end + 1;
    }
    printf("%s\n", text);
}

static void print_option(const char *name, const char *value_name, const char *help)
{
    char left[NAME_BYTES_MAX * 2];
    int width = snprintf(left, sizeof(left), "  --%s%s%s", name, value_name != NULL ? " " : "",
                         value_name != NULL ? value_name : "");
    if (width < HELP_COLUMN)
        printf("%-*s", HELP_COLUMN, left);
    else
        printf("%s\n%*s", left, HELP_COLUMN, "");
    print_wrapped(help);
}

static bool takes(const struct args_command *command, enum args_kind kind)
{
    for (size_t i = 0; i < command->option_count; i++)
        if (command->options[i].kind == kind)
            return true;
    return false;
}

static void print_help(const struct args_command *command)
{
    printf("%s\n\nusage: spillway %s %s\n\n", command->summary, command->name, command->usage);
    for (size_t i = 0; i < command->option_count; i++) {
        const struct args_option *option = &command->options[i];
        print_option(option->name, option->value_name, option->help);
    }
    print_option("help", NULL, "print this and exit");
    if (takes(command, ARGS_SIZE))
        printf("\nSizes are in bytes, or take K M G T (powers of 1024).\n");
    if (takes(command, ARGS_DURATION))
        printf("Times are in seconds, or take s m h d.\n");
    printf("\nexample:\n  %s\n", command->example);
}

/* The command line */

/* Reads the option at argv[*index] and moves *index past its value. */
static int parse_option(const struct args_command *command, int argc, char **argv, int *index,
                        struct err *err)
{
    const char *word = argv[*index] + 2;
    const char *equals = strchr(word, '=');
    size_t length = equals != NULL ? (size_t)(equals - word) : strlen(word);
    char name[NAME_BYTES_MAX];
    snprintf(name, sizeof(name), "%.*s", (int)MIN(length, sizeof(name)), word);
    const struct args_option *option = length < sizeof(name) ? find_option(command, name) : NULL;
    if (option == NULL)
        return unknown_option(command, name, err);
    if (option->given != NULL)
        *option->given = true;
    if (option->kind == ARGS_FLAG) {
        if (equals != NULL)
            return err_set(err, ERR_USAGE, "--%s takes no value", name);
        *(bool *)option->target = true;
        return 0;
    }
    const char *value = equals != NULL ? equals + 1 : NULL;
    if (value == NULL) {
        /* A following option is a forgotten value, not a value that looks like an option. */
        if (*index + 1 >= argc || strncmp(argv[*index + 1], "--", 2) == 0)
            return err_set(err, ERR_USAGE, "--%s needs a value: --%s %s", name, name,
                           option->value_name);
        value = argv[++*index];
    }
    struct err cause;
    if (parse_value(option, value, &cause) != 0)
        return err_set(err, ERR_USAGE, "--%s: %s", name, cause.message);
    return 0;
}

static int take_positional(struct args_command *command, const char *word, struct err *err)
{
    if (command->positional == NULL)
        return err_set(err, ERR_USAGE, "\"%s\" is no option; see spillway %s --help", word,
                       command->name);
    if (command->positional_count == command->positional_max)
        return err_set(err, ERR_USAGE,
                       "\"%s\" is one argument too many; at most %zu can be given; see spillway %s "
                       "--help",
                       word, command->positional_max, command->name);
    command->positional[command->positional_count++] = word;
    return 0;
}

int args_parse(struct args_command *command, int argc, char **argv, struct err *err)
{
    ASSERT(argc >= 1);
    command->positional_count = 0;
    bool only_positional = false;
    for (int i = 1; i < argc; i++) {
        const char *word = argv[i];
        int result = 0;
        if (only_positional || word[0] != '-' || strcmp(word, "-") == 0) {
            result = take_positional(command, word, err);
        } else if (strcmp(word, "--") == 0) {
            only_positional = true;
        } else if (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0) {
            print_help(command);
            return 1;
        } else if (word[1] == '-') {
            result = parse_option(command, argc, argv, &i, err);
        } else {
            result =
                err_set(err, ERR_USAGE, "unknown option %s; options start with two dashes", word);
        }
        if (result != 0)
            return result;
    }
    return 0;
}
