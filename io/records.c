#include "io/records.h"
#include "core/base.h"
#include "core/clock.h"
#include "core/mem.h"
#include "core/pool.h"
#include <string.h>

#define RECORDS_MAX 16384 /* of one batch */

struct record {
    size_t start, bytes; /* in the buffer */
    size_t text_bytes;   /* at the same place of the other */
    uint32_t broken;
    enum record_result result;
};

struct records {
    struct pool *pool; /* borrowed; may be NULL */
    const struct records_kind *kind;
    struct records_rules rules;
    struct unpack *unpack;  /* borrowed */
    char *buffer, *text;    /* owned [capacity] */
    size_t capacity, used;  /* buffer[0, used) was read */
    size_t found;           /* buffer[0, found) is in records, or in none */
    struct record *records; /* owned [RECORDS_MAX] */
    uint32_t count, next;
    bool at_end, passing; /* the bytes at `found` are of a record that is too long */
    int code;             /* of the last read; told after what came before it */
    struct err read_err;
    struct records_count counted;
};

struct records *records_new(const struct unpack_settings *settings, uint64_t buffer_bytes)
{
    struct records *records = mem_alloc(1, sizeof(*records));
    records->pool = settings->pool;
    records->capacity = buffer_bytes;
    records->buffer = mem_alloc(buffer_bytes, 1);
    records->text = mem_alloc(buffer_bytes, 1);
    records->records = mem_alloc(RECORDS_MAX, sizeof(*records->records));
    return records;
}

void records_free(struct records *records)
{
    if (records == NULL)
        return;
    mem_free(records->buffer);
    mem_free(records->text);
    mem_free(records->records);
    mem_free(records);
}

void records_begin(struct records *records, const struct records_kind *kind, struct unpack *unpack,
                   const char *text_field, const char *head, size_t head_bytes)
{
    ASSERT(head_bytes <= records->capacity);
    records->kind = kind;
    records->unpack = unpack;
    records->rules.text_field = text_field;
    wikitext_names_init(&records->rules.names);
    memcpy(records->buffer, head, head_bytes);
    records->used = head_bytes;
    records->found = 0;
    records->count = records->next = 0;
    records->at_end = records->passing = false;
    records->code = 0;
}

const struct records_count *records_counted(const struct records *records)
{
    return &records->counted;
}

void records_restore(struct records *records, const struct records_count *count)
{
    records->counted = *count;
}

/* Moves what is in no record yet to the front and fills the buffer. */
static void fill(struct records *records)
{
    memmove(records->buffer, records->buffer + records->found, records->used - records->found);
    records->used -= records->found;
    records->found = 0;
    while (!records->at_end && records->used < records->capacity) {
        ssize_t got = unpack_read(records->unpack, records->buffer + records->used,
                                  records->capacity - records->used, &records->read_err);
        records->at_end = got <= 0;
        records->code = got < 0 ? (int)got : 0;
        records->used += got > 0 ? (size_t)got : 0;
    }
}

static void pass(struct records *records)
{
    bool over = false;
    records->found += records->kind->pass(records->buffer + records->found,
                                          records->used - records->found, &over);
    records->passing = !over && !records->at_end;
}

/* The records that are whole in the buffer. */
static void find(struct records *records)
{
    records->count = records->next = 0;
    if (records->passing)
        pass(records);
    while (records->count < RECORDS_MAX && !records->passing) {
        size_t start, end, skip = 0;
        int found = records->kind->find(&records->rules, records->buffer + records->found,
                                        records->used - records->found, records->at_end, &start,
                                        &end, &skip);
        if (found == 0) {
            records->found += skip;
            break;
        }
        records->records[records->count++] =
            (struct record){.start = records->found + start, .bytes = end - start};
        records->found += end;
    }
}

static void convert(void *context, uint32_t task, uint32_t worker)
{
    struct records *records = context;
    struct record *record = &records->records[task];
    (void)worker;
    record->result =
        records->kind->convert(&records->rules, records->buffer + record->start, record->bytes,
                               records->text + record->start, &record->text_bytes, &record->broken);
    ASSERT(record->result != RECORD_TEXT || record->text_bytes <= record->bytes);
}

static void convert_all(struct records *records)
{
    if (records->pool != NULL && records->count > 0)
        pool_run(records->pool, convert, records, records->count);
    for (uint32_t i = 0; records->pool == NULL && i < records->count; i++)
        convert(records, i, 0);
}

/* The next batch; without records, the file is at its end. */
static void next_batch(struct records *records)
{
    uint64_t start_ns = clock_ns();
    do {
        fill(records);
        find(records);
        /* A buffer without the end of a record: that one is too long. */
        bool full = records->used - records->found == records->capacity;
        if (records->count == 0 && full && !records->passing) {
            records->counted.results[RECORD_TOO_LONG]++;
            pass(records);
        }
    } while (records->count == 0 && !records->at_end);
    uint64_t filled_ns = clock_ns();
    convert_all(records);
    records->counted.unpack_ns += filled_ns - start_ns;
    records->counted.convert_ns += clock_ns() - filled_ns;
}

static void count(struct records *records, const struct record *record)
{
    records->counted.results[record->result]++;
    records->counted.broken_documents += record->result == RECORD_TEXT && record->broken > 0;
    records->counted.broken_parts += record->result == RECORD_TEXT ? record->broken : 0;
}

int records_next(struct records *records, const char **text, size_t *bytes, struct err *err)
{
    for (;;) {
        while (records->next < records->count) {
            const struct record *record = &records->records[records->next++];
            count(records, record);
            if (record->result != RECORD_TEXT || record->text_bytes == 0)
                continue;
            *text = records->text + record->start;
            *bytes = record->text_bytes;
            return 1;
        }
        bool over = records->at_end && records->count < RECORDS_MAX;
        if (over) {
            if (records->code != 0)
                *err = records->read_err;
            return records->code;
        }
        next_batch(records);
        if (records->count == 0 && records->code != 0)
            *err = records->read_err;
        if (records->count == 0)
            return records->code;
    }
}
