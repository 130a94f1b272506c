#include "io/corpus.h"
#include "core/base.h"
#include "core/clock.h"
#include "core/mem.h"
#include "io/fetch.h"
#include "io/file.h"
#include "io/pretoken.h"
#include "io/spool.h"
#include "io/unpack.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* What follows a piece decides where it may end, so at least LOOKAHEAD_BYTES of the file (or its
 * rest) are there when one is taken; twice as many, so that moving what is left costs little. */
#define LOOKAHEAD_BYTES (2 * (size_t)CORPUS_PIECE_MAX)
#define BUFFER_BYTES    (2 * LOOKAHEAD_BYTES)
/* As git does: a NUL among the first 8000 bytes means that a file is no text. */
#define SNIFF_BYTES 8000
/* Of more files than these in folders none is opened before its turn. */
#define LOOK_FILES_MAX 4096
/* Of the budget, for each of the two buffers of records; a record must fit. */
#define RECORDS_SHARE     64
#define RECORDS_BYTES_MIN (4 * MIB)
#define RECORDS_BYTES_MAX (64 * MIB)
#define WINDOW_SHARE      16 /* of the budget, for zstd's window */

/* ---------------------------------------------------------------------------------------------
 * What a file is
 * ------------------------------------------------------------------------------------------- */

static const struct {
    const char *magic; /* first bytes */
    const char *what;
} foreign_kinds[] = {
    {"\xfd"
     "7zXZ",
     "an xz archive"},
    {"PK\x03\x04", "a zip archive"},
    {"%PDF-", "a PDF"},
    {"\xff\xfe", "UTF-16"},
    {"\xfe\xff", "UTF-16"},
    {"<?xml", "XML that is no wiki dump"},
};

/* Whether path ends so, before an ending that tells how it is compressed. */
static bool has_ending(const char *path, const char *ending)
{
    static const char *const packed[] = {"", ".gz", ".bz2", ".zst"};
    size_t path_bytes = strlen(path), ending_bytes = strlen(ending);
    for (size_t i = 0; i < ARRAY_COUNT(packed); i++) {
        size_t behind = strlen(packed[i]);
        if (path_bytes > ending_bytes + behind &&
            strcmp(path + path_bytes - behind, packed[i]) == 0 &&
            strncmp(path + path_bytes - behind - ending_bytes, ending, ending_bytes) == 0)
            return true;
    }
    return false;
}

/* A line that is an object, or the long beginning of one. */
static bool looks_like_jsonl(const char *head, size_t bytes)
{
    size_t start = 0;
    while (start < bytes && strchr(" \t\r\n", head[start]) != NULL && head[start] != '\0')
        start++;
    const char *newline = memchr(head + start, '\n', bytes - start);
    size_t end = newline != NULL ? (size_t)(newline - head) : bytes;
    while (end > start && (head[end - 1] == ' ' || head[end - 1] == '\r'))
        end--;
    if (end - start < 2 || head[start] != '{' || strchr("\"} ", head[start + 1]) == NULL)
        return false;
    return head[end - 1] == '}' || (newline == NULL && bytes == SNIFF_BYTES);
}

/* NULL: of none of the kinds that are read, *what says of which; else what the file's text is. */
enum kind { KIND_TEXT, KIND_JSONL, KIND_WIKI, KIND_FOREIGN };

static enum kind kind_of(const char *path, const char *head, size_t bytes, const char **what)
{
    for (size_t i = 0; i < ARRAY_COUNT(foreign_kinds); i++) {
        size_t magic_bytes = strlen(foreign_kinds[i].magic);
        *what = foreign_kinds[i].what;
        if (bytes >= magic_bytes && memcmp(head, foreign_kinds[i].magic, magic_bytes) == 0 &&
            memmem(head, bytes, "<mediawiki", 10) == NULL)
            return KIND_FOREIGN;
    }
    if (memmem(head, MIN(bytes, (size_t)1000), "<mediawiki", 10) != NULL)
        return KIND_WIKI;
    if (has_ending(path, ".jsonl") || has_ending(path, ".ndjson") || looks_like_jsonl(head, bytes))
        return KIND_JSONL;
    *what = has_ending(path, ".json")           ? "JSON"
            : has_ending(path, ".xml")          ? "XML that is no wiki dump"
            : memchr(head, '\0', bytes) != NULL ? "binary data or UTF-16"
                                                : NULL;
    return *what != NULL ? KIND_FOREIGN : KIND_TEXT;
}

/* As asked for, or by content. */
static enum kind choose_kind(const struct corpus *corpus, const char *path, bool found,
                             const char *head, size_t bytes, const char **what)
{
    switch (corpus->settings.format) {
    case CORPUS_FORMAT_JSONL:
        return KIND_JSONL;
    case CORPUS_FORMAT_WIKI:
        return KIND_WIKI;
    case CORPUS_FORMAT_TEXT:
        /* JSON and XML in folders too, and never what holds NULs there. */
        return found && memchr(head, '\0', bytes) != NULL ? KIND_FOREIGN : KIND_TEXT;
    default:
        return kind_of(path, head, bytes, what);
    }
}

/* ---------------------------------------------------------------------------------------------
 * Counting
 * ------------------------------------------------------------------------------------------- */

static void tally(struct corpus *corpus, enum corpus_left kind, const char *example)
{
    struct corpus_tally *tally = &corpus->left[kind];
    if (!corpus->first_pass)
        return;
    tally->count++;
    if (tally->example == NULL)
        tally->example = mem_strdup(example);
}

static const char *open_path(const struct corpus *corpus)
{
    return tree_path(&corpus->tree, corpus->file_next - 1);
}

static const struct tree_file *open_file(const struct corpus *corpus)
{
    return &corpus->tree.files[corpus->file_next - 1];
}

/* Reading the open file failed: damage in a file that was met in a folder ends that file only. */
static int forgive(struct corpus *corpus, int code, const struct err *err)
{
    if (code != ERR_CORRUPT || !open_file(corpus)->found)
        return code;
    tally(corpus, CORPUS_DAMAGED, err->message);
    corpus->cut_short = true;
    return 0;
}

/* ---------------------------------------------------------------------------------------------
 * Files
 * ------------------------------------------------------------------------------------------- */

static void close_file(struct corpus *corpus)
{
    if (corpus->open)
        corpus->closed_bytes += unpack_used_bytes(corpus->unpack);
    if (corpus->fd > STDERR_FILENO)
        close(corpus->fd);
    corpus->fd = -1;
    corpus->open = corpus->at_end = corpus->in_document = corpus->cut_short = false;
    corpus->pieces = 0;
    corpus->start = corpus->end = corpus->record_bytes = 0;
    corpus->records_kind = NULL;
}

static int fill(struct corpus *corpus, struct err *err)
{
    while (corpus->end < BUFFER_BYTES) {
        ssize_t got = unpack_read(corpus->unpack, corpus->buffer + corpus->end,
                                  BUFFER_BYTES - corpus->end, err);
        corpus->at_end = got <= 0;
        if (got < 0)
            return forgive(corpus, (int)got, err);
        if (got == 0)
            return 0;
        corpus->end += (size_t)got;
    }
    return 0;
}

/* Makes sure that the buffer holds LOOKAHEAD_BYTES or the rest of the file. */
static int refill(struct corpus *corpus, struct err *err)
{
    if (corpus->at_end || corpus->end - corpus->start >= LOOKAHEAD_BYTES)
        return 0;
    memmove(corpus->buffer, corpus->buffer + corpus->start, corpus->end - corpus->start);
    corpus->end -= corpus->start;
    corpus->start = 0;
    uint64_t start_ns = clock_ns();
    int code = fill(corpus, err);
    corpus->unpack_ns += clock_ns() - start_ns;
    return code;
}

/* From where the bytes of the file come. 1: they do; 0: the file is left out; or a negative code.
 */
static int open_descriptor(struct corpus *corpus, struct unpack_file *file, struct err *err)
{
    bool found = open_file(corpus)->found;
    int error = EFBIG;
    *file = (struct unpack_file){.name = open_path(corpus), .fd = -1};
    if (strcmp(file->name, TREE_STDIN) == 0) {
        file->fd = corpus->fd = STDIN_FILENO;
        return 1;
    }
    if (found && corpus->fetch != NULL) {
        int32_t got = fetch_take(corpus->fetch, corpus->file_next - 1, &file->head);
        file->head_bytes = corpus->head_bytes = got > 0 ? (size_t)got : 0;
        error = got < 0 ? -got : 0;
    }
    if (error == EFBIG) {
        file->fd = corpus->fd = open(file->name, O_RDONLY | O_CLOEXEC);
        error = corpus->fd < 0 ? errno : 0;
        (void)posix_fadvise(corpus->fd, 0, 0, POSIX_FADV_SEQUENTIAL);
    }
    if (error != 0 && !found)
        return err_set_errno(err, error, "cannot open the text %s", file->name);
    if (error != 0)
        tally(corpus, CORPUS_UNREADABLE, file->name);
    return error == 0;
}

static int refuse(const char *path, const char *what, struct err *err)
{
    return err_set(err, ERR_INPUT,
                   "%s looks like %s, and prep reads plain UTF-8 text, JSON lines and wiki dumps: "
                   "convert or unpack it first, or take its bytes as they are with --format text",
                   path, what);
}

static void need_records(struct corpus *corpus)
{
    const struct unpack_settings pool = {.pool = corpus->settings.pool};
    uint64_t bytes = MIN(corpus->settings.ram_budget / RECORDS_SHARE, RECORDS_BYTES_MAX);
    if (corpus->records == NULL)
        corpus->records = records_new(&pool, MAX(bytes, RECORDS_BYTES_MIN));
}

static void begin_records(struct corpus *corpus, const struct records_kind *kind)
{
    const struct corpus_settings *settings = &corpus->settings;
    need_records(corpus);
    corpus->records_kind = kind;
    records_begin(corpus->records, kind, corpus->unpack,
                  settings->text_field != NULL ? settings->text_field : "text",
                  corpus->buffer + corpus->start, corpus->end - corpus->start);
}

/* The file is open and its first bytes are read. 1: it has text; 0: it is left out. */
static int begin_file(struct corpus *corpus, struct err *err)
{
    const char *what = "no plain text", *path = open_path(corpus);
    bool found = open_file(corpus)->found;
    const char *head = corpus->buffer + corpus->start;
    if (corpus->start == corpus->end) {
        if (!corpus->cut_short)
            tally(corpus, CORPUS_EMPTY, path);
        return 0;
    }
    size_t head_bytes = MIN(corpus->end - corpus->start, (size_t)SNIFF_BYTES);
    enum kind kind = choose_kind(corpus, path, found, head, head_bytes, &what);
    if (kind == KIND_FOREIGN && !found)
        return refuse(path, what, err);
    if (kind == KIND_FOREIGN) {
        tally(corpus, CORPUS_SKIPPED, path);
        return 0;
    }
    if (kind != KIND_TEXT)
        begin_records(corpus, kind == KIND_JSONL ? &jsonl_records : &wiki_records);
    return 1;
}

/* The next file: 1, it is open; 0, it is left out; or a negative code. */
static int open_next(struct corpus *corpus, struct err *err)
{
    ASSERT(!corpus->open && corpus->file_next < corpus->tree.file_count);
    corpus_tell(corpus, &corpus->opened);
    corpus->file_next++;
    struct unpack_file file;
    int code = open_descriptor(corpus, &file, err);
    if (code <= 0)
        return code;
    corpus->open = true;
    code = unpack_begin(corpus->unpack, &file, err);
    if (code == 0)
        code = refill(corpus, err);
    if (code == 0)
        code = begin_file(corpus, err);
    if (code <= 0)
        close_file(corpus);
    return code;
}

/* ---------------------------------------------------------------------------------------------
 * Opening
 * ------------------------------------------------------------------------------------------- */

/* Whether all that this file holds is cheap to read again, and so needs no spool. */
static bool is_cheap(const struct corpus *corpus)
{
    return corpus->records_kind == NULL && unpack_kind(corpus->unpack) == NULL;
}

/* Looks into file number `index`. *kept: it stays in the list. */
static int look_into(struct corpus *corpus, uint64_t index, bool *kept, bool *cheap,
                     struct err *err)
{
    struct stat status;
    corpus->file_next = index;
    int code = open_next(corpus, err);
    *kept = code == 1;
    if (code != 1)
        return code;
    if (corpus->fd < 0)
        corpus->total_bytes += corpus->head_bytes;
    else if (fstat(corpus->fd, &status) == 0)
        corpus->total_bytes += (uint64_t)status.st_size;
    *cheap &= is_cheap(corpus);
    close_file(corpus);
    return 0;
}

/* Looks into the files that are looked into before their turn, and forgets those without text. */
static int look_around(struct corpus *corpus, bool *cheap, struct err *err)
{
    struct tree *tree = &corpus->tree;
    bool few = tree->file_count <= LOOK_FILES_MAX;
    uint64_t kept_count = 0;
    int code = 0;
    for (uint64_t i = 0; code == 0 && i < tree->file_count; i++) {
        bool kept = true;
        bool standard = strcmp(tree_path(tree, i), TREE_STDIN) == 0;
        bool look = !standard && (few || !tree->files[i].found);
        *cheap &= look;
        corpus->total_known &= look;
        if (look)
            code = look_into(corpus, i, &kept, cheap, err);
        if (kept)
            tree->files[kept_count++] = tree->files[i];
    }
    if (code == 0)
        tree->file_count = kept_count;
    return code;
}

static bool names_stdin(const struct tree *tree)
{
    for (uint64_t i = 0; i < tree->file_count; i++)
        if (!tree->files[i].found && strcmp(tree_path(tree, i), TREE_STDIN) == 0)
            return true;
    return false;
}

int corpus_open(struct corpus *corpus, const struct corpus_settings *settings, struct err *err)
{
    const struct unpack_settings unpack = {.pool = settings->pool,
                                           .window_bytes_max = settings->ram_budget / WINDOW_SHARE};
    struct err cannot;
    bool cheap = true;
    *corpus =
        (struct corpus){.settings = *settings, .fd = -1, .total_known = true, .first_pass = true};
    corpus->unpack = unpack_new(&unpack);
    corpus->buffer = mem_alloc(BUFFER_BYTES, 1);
    int code =
        tree_open(&corpus->tree, settings->inputs, settings->input_count, settings->leave_out, err);
    if (code == 0 && settings->spool_dir == NULL && names_stdin(&corpus->tree))
        code = err_set(err, ERR_INPUT, "standard input can be read only once");
    if (code == 0 && corpus->tree.has_folders)
        corpus->fetch_failed = fetch_open(&corpus->fetch, &corpus->tree, &cannot) != 0;
    if (code == 0)
        code = look_around(corpus, &cheap, err);
    corpus->file_next = corpus->closed_bytes = 0;
    if (corpus->fetch != NULL)
        fetch_seek(corpus->fetch, 0);
    /* It is opened by the first corpus_next: until then the folder need not be there. */
    corpus->spooled = false;
    if (cheap)
        corpus->settings.spool_dir = NULL;
    if (code != 0)
        corpus_close(corpus);
    return code;
}

void corpus_close(struct corpus *corpus)
{
    if (corpus->buffer != NULL)
        close_file(corpus);
    for (size_t i = 0; i < CORPUS_LEFTS; i++)
        mem_free(corpus->left[i].example);
    tree_close(&corpus->tree);
    unpack_free(corpus->unpack);
    records_free(corpus->records);
    fetch_close(corpus->fetch);
    spool_close(corpus->spool);
    mem_free(corpus->buffer);
    *corpus = (struct corpus){.fd = -1};
}

/* ---------------------------------------------------------------------------------------------
 * Plain text
 * ------------------------------------------------------------------------------------------- */

static bool blank_space(char c)
{
    return c == ' ' || c == '\t' || c == '\r' || c == '\f' || c == '\v';
}

/* Whether the line at position is blank, and where the next one begins. A line that does not end
 * within the buffer (more than a piece of white space) is not blank, unless the file ends there. */
static bool blank_line(const struct corpus *corpus, size_t position, size_t *next)
{
    while (position < corpus->end && blank_space(corpus->buffer[position]))
        position++;
    if (position == corpus->end) {
        *next = position;
        return corpus->at_end;
    }
    *next = position + 1;
    return corpus->buffer[position] == '\n';
}

/* Passes the blank lines before a document. */
static int skip_blank_lines(struct corpus *corpus, struct err *err)
{
    int code = 0;
    size_t next;
    while (code == 0) {
        code = refill(corpus, err);
        if (code != 0 || corpus->start == corpus->end || !blank_line(corpus, corpus->start, &next))
            break;
        corpus->start = next;
    }
    return code;
}

/* Where the document that goes on at start ends, looking no further than limit, or SIZE_MAX where
 * it goes on beyond. *after: where the search for the next one begins. */
static size_t document_end(const struct corpus *corpus, size_t limit, size_t *after)
{
    if (corpus->settings.split == CORPUS_SPLIT_FILE || corpus->start == corpus->end) {
        *after = corpus->end;
        return corpus->at_end && corpus->end <= limit ? corpus->end : SIZE_MAX;
    }
    for (size_t at = corpus->start; at < limit && at < corpus->end; at++) {
        const char *newline = memchr(corpus->buffer + at, '\n', MIN(limit, corpus->end) - at);
        if (newline == NULL)
            break;
        size_t next;
        at = (size_t)(newline - corpus->buffer);
        if (blank_line(corpus, at + 1, &next)) {
            *after = next;
            return at > corpus->start && corpus->buffer[at - 1] == '\r' ? at - 1 : at;
        }
    }
    *after = corpus->end;
    return corpus->at_end && corpus->end <= limit ? corpus->end : SIZE_MAX;
}

/* Bytes of the next piece of a document that is longer than a piece. */
static size_t torn_bytes(const char *text)
{
    size_t cut = pretoken_cut(text, CORPUS_PIECE_MAX);
    if (cut > 0)
        return cut;
    /* No white space at all: not in the middle of a character, which has at most 3 bytes more. */
    cut = CORPUS_PIECE_MAX;
    for (int i = 0; i < 3 && ((uint8_t)text[cut] & 0xc0) == 0x80; i++)
        cut--;
    return cut;
}

static void take_piece(struct corpus *corpus, struct corpus_piece *piece)
{
    size_t after, limit = corpus->start + CORPUS_PIECE_MAX;
    size_t end = document_end(corpus, limit, &after);
    piece->text = corpus->buffer + corpus->start;
    piece->first = !corpus->in_document;
    piece->last = end != SIZE_MAX;
    piece->bytes = piece->last ? end - corpus->start : torn_bytes(piece->text);
    corpus->start = piece->last ? after : corpus->start + piece->bytes;
    corpus->in_document = !piece->last;
}

/* 1 and a piece of the open file, 0 at its end. */
static int next_of_text(struct corpus *corpus, struct corpus_piece *piece, struct err *err)
{
    int code = refill(corpus, err);
    if (code == 0 && corpus->settings.split == CORPUS_SPLIT_BLANK && !corpus->in_document)
        code = skip_blank_lines(corpus, err);
    if (code != 0 || (corpus->start == corpus->end && !corpus->in_document))
        return code;
    take_piece(corpus, piece);
    return 1;
}

/* ---------------------------------------------------------------------------------------------
 * Reading
 * ------------------------------------------------------------------------------------------- */

/* 1 and a piece of the open file, 0 at its end. */
static int next_of_records(struct corpus *corpus, struct corpus_piece *piece, struct err *err)
{
    piece->first = corpus->record_bytes == 0;
    if (piece->first) {
        uint64_t before_ns = records_counted(corpus->records)->unpack_ns;
        int code = records_next(corpus->records, &corpus->record, &corpus->record_bytes, err);
        corpus->unpack_ns += records_counted(corpus->records)->unpack_ns - before_ns;
        if (code != 1)
            return code < 0 ? forgive(corpus, code, err) : 0;
    }
    piece->text = corpus->record;
    piece->last = corpus->record_bytes <= CORPUS_PIECE_MAX;
    piece->bytes = piece->last ? corpus->record_bytes : torn_bytes(piece->text);
    corpus->record += piece->bytes;
    corpus->record_bytes -= piece->bytes;
    return 1;
}

/* A file is open, or was the last one: 1 or 0. */
static int have_file(struct corpus *corpus, struct err *err)
{
    int code = corpus->open;
    while (code == 0 && corpus->file_next < corpus->tree.file_count) {
        code = open_next(corpus, err);
        if (code == 1 && corpus->first_pass) {
            corpus->file_count++;
            corpus->jsonl_files += corpus->records_kind == &jsonl_records;
            corpus->wiki_files += corpus->records_kind == &wiki_records;
            corpus->packed_files += unpack_kind(corpus->unpack) != NULL;
        }
    }
    return code;
}

static int next_of_files(struct corpus *corpus, struct corpus_piece *piece, struct err *err)
{
    for (;;) {
        int code = have_file(corpus, err);
        if (code != 1)
            return code;
        piece->input = open_file(corpus)->input;
        code = corpus->records_kind != NULL ? next_of_records(corpus, piece, err)
                                            : next_of_text(corpus, piece, err);
        corpus->pieces += code == 1;
        if (code != 0)
            return code;
        close_file(corpus);
    }
}

static int next_of_spool(struct corpus *corpus, struct corpus_piece *piece, struct err *err)
{
    struct spool_piece kept;
    int code = spool_read(corpus->spool, &kept, err);
    if (code == 1 && kept.input >= corpus->settings.input_count)
        return err_set(err, ERR_CORRUPT,
                       "the text that was kept in %s is damaged: begin anew with --restart",
                       corpus->settings.spool_dir);
    if (code == 1)
        *piece = (struct corpus_piece){kept.text, kept.bytes, kept.input, kept.first, kept.last};
    return code;
}

/* To the spool as well. */
static int keep(struct corpus *corpus, const struct corpus_piece *piece, struct err *err)
{
    const struct spool_piece kept = {piece->text, (uint32_t)piece->bytes, piece->input,
                                     piece->first, piece->last};
    int code = 0;
    if (corpus->spool == NULL)
        code = spool_open(&corpus->spool, corpus->settings.spool_dir, corpus->settings.spool_name,
                          err);
    return code == 0 ? spool_write(corpus->spool, &kept, err) : code;
}

int corpus_next(struct corpus *corpus, struct corpus_piece *piece, struct err *err)
{
    if (corpus->reading_spool)
        return next_of_spool(corpus, piece, err);
    int code = next_of_files(corpus, piece, err);
    if (code == 1 && corpus->settings.spool_dir != NULL) {
        int kept = keep(corpus, piece, err);
        return kept != 0 ? kept : 1;
    }
    if (code == 0) {
        corpus->spooled = corpus->spool != NULL;
        corpus->first_pass = false;
    }
    return code;
}

int corpus_rewind(struct corpus *corpus, struct err *err)
{
    close_file(corpus);
    corpus->file_next = corpus->closed_bytes = 0;
    if (corpus->fetch != NULL)
        fetch_seek(corpus->fetch, 0);
    if (corpus->spooled) {
        corpus->reading_spool = true;
        return spool_rewind(corpus->spool, err);
    }
    if (corpus->spool != NULL)
        spool_clear(corpus->spool);
    return 0;
}

/* ---------------------------------------------------------------------------------------------
 * Positions
 * ------------------------------------------------------------------------------------------- */

void corpus_tell(const struct corpus *corpus, struct corpus_position *position)
{
    if (corpus->open) {
        *position = corpus->opened;
        position->pieces = corpus->pieces;
    } else {
        *position = (struct corpus_position){
            .file = corpus->file_next,
            .closed_bytes = corpus->closed_bytes,
            .counts = {.file_count = corpus->file_count,
                       .jsonl_files = corpus->jsonl_files,
                       .wiki_files = corpus->wiki_files,
                       .packed_files = corpus->packed_files},
        };
        for (size_t i = 0; i < CORPUS_LEFTS; i++)
            position->counts.left[i] = corpus->left[i].count;
        if (corpus->records != NULL)
            position->counts.records = *records_counted(corpus->records);
    }
    position->spool_bytes = corpus->reading_spool   ? spool_position(corpus->spool)
                            : corpus->spool != NULL ? spool_bytes(corpus->spool)
                                                    : 0;
}

/* To a piece of a file, by passing those before it again. */
static int seek_in_files(struct corpus *corpus, const struct corpus_position *position,
                         struct err *err)
{
    struct corpus_piece piece;
    close_file(corpus);
    corpus->file_next = position->file;
    corpus->closed_bytes = position->closed_bytes;
    if (corpus->fetch != NULL)
        fetch_seek(corpus->fetch, position->file);
    for (uint64_t i = 0; i < position->pieces; i++) {
        int code = next_of_files(corpus, &piece, err);
        if (code < 0)
            return code;
        if (code == 0 || corpus->file_next != position->file + 1)
            return err_set(err, ERR_CORRUPT, "%s holds less text than it did before",
                           tree_path(&corpus->tree, position->file));
    }
    return 0;
}

int corpus_seek(struct corpus *corpus, const struct corpus_position *position, struct err *err)
{
    ASSERT(!corpus->first_pass && position->file <= corpus->tree.file_count);
    if (!corpus->spooled)
        return seek_in_files(corpus, position, err);
    int code = corpus_rewind(corpus, err);
    if (code == 0)
        spool_seek(corpus->spool, position->spool_bytes);
    return code;
}

int corpus_sync(struct corpus *corpus, struct err *err)
{
    return corpus->spool != NULL ? spool_sync(corpus->spool, err) : 0;
}

static void restore_counts(struct corpus *corpus, const struct corpus_counts *counts,
                           const char *const examples[CORPUS_LEFTS])
{
    static const struct records_count none;
    corpus->file_count = counts->file_count;
    corpus->jsonl_files = counts->jsonl_files;
    corpus->wiki_files = counts->wiki_files;
    corpus->packed_files = counts->packed_files;
    for (size_t i = 0; i < CORPUS_LEFTS; i++) {
        struct corpus_tally *tally = &corpus->left[i];
        tally->count = counts->left[i];
        mem_free(tally->example);
        tally->example =
            tally->count > 0 ? mem_strdup(examples[i] != NULL ? examples[i] : "") : NULL;
    }
    if (memcmp(&counts->records, &none, sizeof(none)) != 0) {
        need_records(corpus);
        records_restore(corpus->records, &counts->records);
    }
}

int corpus_resume(struct corpus *corpus, const struct corpus_position *position,
                  const char *const examples[CORPUS_LEFTS], bool over, struct err *err)
{
    const struct corpus_settings *settings = &corpus->settings;
    ASSERT(corpus->first_pass && corpus->spool == NULL);
    ASSERT(position->file <= corpus->tree.file_count);
    int code = 0;
    restore_counts(corpus, &position->counts, examples);
    if (settings->spool_dir != NULL && position->spool_bytes > 0)
        code = spool_reopen(&corpus->spool, settings->spool_dir, settings->spool_name,
                            position->spool_bytes, err);
    corpus->first_pass = !over;
    corpus->spooled = over && corpus->spool != NULL;
    return code == 0 && !over ? seek_in_files(corpus, position, err) : code;
}

bool corpus_is_spooled(const struct corpus *corpus)
{
    return corpus->settings.spool_dir != NULL;
}

double corpus_done(const struct corpus *corpus)
{
    if (corpus->reading_spool)
        return (double)spool_position(corpus->spool) /
               (double)MAX(spool_bytes(corpus->spool), (uint64_t)1);
    uint64_t open_bytes = corpus->open ? unpack_used_bytes(corpus->unpack) : 0;
    if (corpus->total_known)
        return (double)(corpus->closed_bytes + open_bytes) /
               (double)MAX(corpus->total_bytes, (uint64_t)1);
    if (corpus->tree.has_folders)
        return (double)corpus->file_next / (double)corpus->tree.file_count;
    return -1;
}

uint64_t corpus_memory_bytes(const struct corpus *corpus)
{
    uint64_t bytes = tree_memory_bytes(&corpus->tree);
    if (corpus->fetch != NULL)
        bytes += FETCH_MEMORY_BYTES;
    if (corpus->settings.spool_dir != NULL)
        bytes += 2 * (uint64_t)SPOOL_PIECE_MAX;
    if (corpus->records != NULL || !corpus->total_known)
        bytes += 2 * MAX(MIN(corpus->settings.ram_budget / RECORDS_SHARE, RECORDS_BYTES_MAX),
                         RECORDS_BYTES_MIN);
    return bytes;
}

uint64_t corpus_convert_ns(const struct corpus *corpus)
{
    return corpus->records != NULL ? records_counted(corpus->records)->convert_ns : 0;
}

const struct records_count *corpus_records(const struct corpus *corpus)
{
    return corpus->records != NULL ? records_counted(corpus->records) : NULL;
}
