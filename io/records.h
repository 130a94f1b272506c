/*
 * records: files that hold many documents (lines of JSON, pages of a wiki dump) -> their texts.
 *
 * One thread reads bytes into a buffer and finds where records begin and end; the pool turns them
 * into text, each into its own place of a second buffer, so the result hangs neither on the number
 * of threads nor on their order. Memory is the two buffers: a record that is longer than a buffer
 * is left out and counted, whatever its length. Owned by io/corpus.c, one thread.
 *
 * What a kind of record is stands in a table: io/jsonl.c, io/wiki.c.
 */
#ifndef SPILLWAY_IO_RECORDS_H
#define SPILLWAY_IO_RECORDS_H

#include "core/err.h"
#include "io/unpack.h"
#include "io/wikitext.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum record_result {
    RECORD_TEXT,      /* a document */
    RECORD_OTHER,     /* well-formed, and none: a redirect, a page of another namespace */
    RECORD_FIELDLESS, /* a line without the text field */
    RECORD_MALFORMED,
    RECORD_TOO_LONG,
    RECORD_RESULT_COUNT,
};

struct records_rules {
    const char *text_field;      /* of jsonl */
    struct wikitext_names names; /* of wiki; the kind's begin fills it from the head of a dump */
};

struct records_kind {
    const char *name;
    /* Finds the first record of bytes [0, count): 0, or 1 with [*start, *end) of a whole one.
     * *skip: bytes that belong to no record, whatever follows. at_end: nothing follows. */
    int (*find)(struct records_rules *rules, const char *bytes, size_t count, bool at_end,
                size_t *start, size_t *end, size_t *skip);
    /* In the middle of a record that is too long: bytes that still belong to it; *over: it ends
     * there. */
    size_t (*pass)(const char *bytes, size_t count, bool *over);
    /* One record, which is overwritten, into text, which has room for as many bytes. *broken: parts
     * of it that could not be understood. Any thread. */
    enum record_result (*convert)(const struct records_rules *rules, char *record, size_t bytes,
                                  char *text, size_t *text_bytes, uint32_t *broken);
};
extern const struct records_kind jsonl_records, wiki_records;

struct records_count {
    uint64_t results[RECORD_RESULT_COUNT];
    uint64_t broken_documents, broken_parts;
    uint64_t unpack_ns, convert_ns; /* spent in each */
};

struct records;
/* buffer_bytes: of each of the two buffers. */
struct records *records_new(const struct unpack_settings *settings, uint64_t buffer_bytes);
void records_free(struct records *records); /* NULL is legal */

/* Begins a file, whose bytes come from unpack after the head that was read from it already.
 * text_field is borrowed until the end of the file. */
void records_begin(struct records *records, const struct records_kind *kind, struct unpack *unpack,
                   const char *text_field, const char *head, size_t head_bytes);
/* 1 and the next document (borrowed until the next call), 0 at the end, a negative code: after all
 * documents that were whole before it. */
int records_next(struct records *records, const char **text, size_t *bytes, struct err *err);

/* Of all files so far. */
const struct records_count *records_counted(const struct records *records);
/* These were met by a process before this one. */
void records_restore(struct records *records, const struct records_count *count);

#endif
