#include "io/corpus.h"
#include "core/base.h"
#include "core/mem.h"
#include "io/file.h"
#include "io/pretoken.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* What follows a piece decides where it may end, so at least LOOKAHEAD_BYTES of the file (or its
 * rest) are there when one is taken; twice as many, so that moving what is left costs little. */
#define LOOKAHEAD_BYTES (2 * (size_t)CORPUS_PIECE_MAX)
#define BUFFER_BYTES    (2 * LOOKAHEAD_BYTES)
/* As git does: a NUL among the first 8000 bytes means that a file is no text. */
#define SNIFF_BYTES 8000

/* ---------------------------------------------------------------------------------------------
 * What a file is
 * ------------------------------------------------------------------------------------------- */

static const struct {
    const char *ending; /* of the name; NULL: told by magic */
    const char *magic;  /* first bytes; NULL: told by ending */
    const char *what;
} foreign_kinds[] = {
    {".jsonl", NULL, "JSON lines"},
    {".ndjson", NULL, "JSON lines"},
    {".json", NULL, "JSON"},
    {".xml", NULL, "XML"},
    {NULL, "\x1f\x8b", "a gzip archive"},
    {NULL, "BZh", "a bzip2 archive"},
    {NULL, "\x28\xb5\x2f\xfd", "a zstd archive"},
    {NULL,
     "\xfd"
     "7zXZ",
     "an xz archive"},
    {NULL, "PK\x03\x04", "a zip archive"},
    {NULL, "%PDF-", "a PDF"},
};

static bool ends_with(const char *path, const char *ending)
{
    size_t path_bytes = strlen(path), ending_bytes = strlen(ending);
    return path_bytes > ending_bytes && strcmp(path + path_bytes - ending_bytes, ending) == 0;
}

/* The first bytes of the file; *bytes is how many there are. */
static int sniff(const char *path, char head[SNIFF_BYTES], size_t *bytes, struct err *err)
{
    *bytes = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return err_set_errno(err, errno, "cannot open the text %s", path);
    ssize_t got = read(fd, head, SNIFF_BYTES);
    int error = errno;
    close(fd);
    if (got < 0)
        return err_set_errno(err, error, "cannot read the text %s", path);
    *bytes = (size_t)got;
    return 0;
}

/* NULL for plain text, else what the file looks like. */
static const char *foreign_kind(const char *path, const char *head, size_t bytes)
{
    for (size_t i = 0; i < ARRAY_COUNT(foreign_kinds); i++) {
        const char *magic = foreign_kinds[i].magic, *ending = foreign_kinds[i].ending;
        if (magic != NULL && bytes >= strlen(magic) && memcmp(head, magic, strlen(magic)) == 0)
            return foreign_kinds[i].what;
        if (ending != NULL && ends_with(path, ending))
            return foreign_kinds[i].what;
    }
    return memchr(head, '\0', bytes) != NULL ? "binary data or UTF-16" : NULL;
}

/* ---------------------------------------------------------------------------------------------
 * Listing
 * ------------------------------------------------------------------------------------------- */

static void add_file(struct corpus *corpus, const char *path, uint64_t bytes)
{
    if (bytes == 0) {
        corpus->empty_count++;
        return;
    }
    if (corpus->file_count == corpus->file_capacity) {
        corpus->file_capacity = MAX(corpus->file_capacity * 2, (size_t)64);
        corpus->files = mem_realloc(corpus->files, corpus->file_capacity, sizeof(*corpus->files));
    }
    corpus->files[corpus->file_count++] = (struct corpus_file){mem_strdup(path), bytes};
    corpus->total_bytes += bytes;
}

static void skip_file(struct corpus *corpus, const char *path)
{
    corpus->skipped_count++;
    if (corpus->skipped_example == NULL)
        corpus->skipped_example = mem_strdup(path);
}

/* A file that the user named. */
static int add_named_file(struct corpus *corpus, const char *path, uint64_t bytes, struct err *err)
{
    char head[SNIFF_BYTES];
    size_t head_bytes;
    int code = sniff(path, head, &head_bytes, err);
    if (code != 0)
        return code;
    const char *kind =
        corpus->format == CORPUS_FORMAT_AUTO ? foreign_kind(path, head, head_bytes) : NULL;
    if (kind != NULL)
        return err_set(err, ERR_INPUT,
                       "%s looks like %s, and prep reads plain UTF-8 text: convert or unpack it "
                       "first, or take its bytes as they are with --format text",
                       path, kind);
    add_file(corpus, path, bytes);
    return 0;
}

/* A file that was met in a folder: --format text takes JSON and XML there too, and never what
 * holds NULs. */
static int add_found_file(struct corpus *corpus, const char *path, uint64_t bytes, struct err *err)
{
    char head[SNIFF_BYTES];
    size_t head_bytes;
    int code = sniff(path, head, &head_bytes, err);
    if (code != 0)
        return code;
    bool foreign = corpus->format == CORPUS_FORMAT_AUTO
                       ? foreign_kind(path, head, head_bytes) != NULL
                       : memchr(head, '\0', head_bytes) != NULL;
    if (foreign)
        skip_file(corpus, path);
    else
        add_file(corpus, path, bytes);
    return 0;
}

/* Folders that are still to be read; each is found in one that was read before, and links are not
 * followed, so the list ends. */
struct folders {
    char **paths;
    size_t count, capacity;
};

static void add_folder(struct folders *folders, const char *path)
{
    if (folders->count == folders->capacity) {
        folders->capacity = MAX(folders->capacity * 2, (size_t)16);
        folders->paths = mem_realloc(folders->paths, folders->capacity, sizeof(*folders->paths));
    }
    folders->paths[folders->count++] = mem_strdup(path);
}

static int add_entry(struct corpus *corpus, struct folders *folders, const char *dir,
                     const char *name, struct err *err)
{
    char path[FILE_PATH_MAX];
    struct stat status;
    if (name[0] == '.')
        return 0;
    int code = file_join(path, dir, name, err);
    if (code != 0)
        return code;
    if (lstat(path, &status) != 0)
        return err_set_errno(err, errno, "cannot look at %s", path);
    if (S_ISDIR(status.st_mode))
        add_folder(folders, path);
    else if (S_ISREG(status.st_mode))
        return add_found_file(corpus, path, (uint64_t)status.st_size, err);
    return 0;
}

static int read_folder(struct corpus *corpus, struct folders *folders, const char *dir,
                       struct err *err)
{
    DIR *stream = opendir(dir);
    if (stream == NULL)
        return err_set_errno(err, errno, "cannot read the folder %s", dir);
    int code = 0;
    struct dirent *entry;
    errno = 0;
    while (code == 0 && (entry = readdir(stream)) != NULL) {
        code = add_entry(corpus, folders, dir, entry->d_name, err);
        errno = 0;
    }
    if (code == 0 && errno != 0)
        code = err_set_errno(err, errno, "cannot read the folder %s", dir);
    closedir(stream);
    return code;
}

static int compare_files(const void *a, const void *b)
{
    return strcmp(((const struct corpus_file *)a)->path, ((const struct corpus_file *)b)->path);
}

static int add_tree(struct corpus *corpus, const char *root, struct err *err)
{
    struct folders folders = {0};
    size_t first_file = corpus->file_count;
    int code = 0;
    add_folder(&folders, root);
    for (size_t i = 0; code == 0 && i < folders.count; i++)
        code = read_folder(corpus, &folders, folders.paths[i], err);
    for (size_t i = 0; i < folders.count; i++)
        mem_free(folders.paths[i]);
    mem_free(folders.paths);
    if (corpus->file_count > first_file)
        qsort(corpus->files + first_file, corpus->file_count - first_file, sizeof(*corpus->files),
              compare_files);
    return code;
}

static int add_input(struct corpus *corpus, const char *path, struct err *err)
{
    struct stat status;
    if (stat(path, &status) != 0)
        return errno == ENOENT
                   ? err_set(err, ERR_INPUT, "there is no text %s: name a file or a folder", path)
                   : err_set_errno(err, errno, "cannot read the text %s", path);
    if (S_ISDIR(status.st_mode))
        return add_tree(corpus, path, err);
    if (S_ISREG(status.st_mode))
        return add_named_file(corpus, path, (uint64_t)status.st_size, err);
    return err_set(err, ERR_INPUT,
                   "%s is neither a file nor a folder: text is read twice, so save it to a file "
                   "first",
                   path);
}

int corpus_open(struct corpus *corpus, const char *const *inputs, size_t input_count,
                enum corpus_format format, enum corpus_split split, struct err *err)
{
    *corpus = (struct corpus){.fd = -1, .format = format, .split = split};
    int code = 0;
    for (size_t i = 0; code == 0 && i < input_count; i++)
        code = add_input(corpus, inputs[i], err);
    if (code != 0)
        corpus_close(corpus);
    else
        corpus->buffer = mem_alloc(BUFFER_BYTES, 1);
    return code;
}

void corpus_close(struct corpus *corpus)
{
    corpus_rewind(corpus);
    for (size_t i = 0; i < corpus->file_count; i++)
        mem_free(corpus->files[i].path);
    mem_free(corpus->files);
    mem_free(corpus->skipped_example);
    mem_free(corpus->buffer);
    *corpus = (struct corpus){.fd = -1};
}

/* ---------------------------------------------------------------------------------------------
 * Reading
 * ------------------------------------------------------------------------------------------- */

static void close_file(struct corpus *corpus)
{
    if (corpus->fd >= 0)
        close(corpus->fd);
    corpus->fd = -1;
    corpus->at_end = false;
    corpus->start = corpus->end = 0;
}

void corpus_rewind(struct corpus *corpus)
{
    close_file(corpus);
    corpus->in_document = false;
    corpus->file_next = 0;
    corpus->done_bytes = 0;
}

static const char *open_path(const struct corpus *corpus)
{
    return corpus->files[corpus->file_next - 1].path;
}

static int open_next(struct corpus *corpus, struct err *err)
{
    ASSERT(corpus->fd < 0 && corpus->file_next < corpus->file_count);
    corpus->file_next++;
    corpus->fd = open(open_path(corpus), O_RDONLY | O_CLOEXEC);
    if (corpus->fd < 0)
        return err_set_errno(err, errno, "cannot open the text %s", open_path(corpus));
    (void)posix_fadvise(corpus->fd, 0, 0, POSIX_FADV_SEQUENTIAL);
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
    while (corpus->end < BUFFER_BYTES) {
        ssize_t got = read(corpus->fd, corpus->buffer + corpus->end, BUFFER_BYTES - corpus->end);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return err_set_errno(err, errno, "cannot read the text %s", open_path(corpus));
        if (got == 0) {
            corpus->at_end = true;
            break;
        }
        corpus->end += (size_t)got;
        corpus->done_bytes += (uint64_t)got;
    }
    return 0;
}

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
    if (corpus->split == CORPUS_SPLIT_FILE || corpus->start == corpus->end) {
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

int corpus_next(struct corpus *corpus, struct corpus_piece *piece, struct err *err)
{
    for (;;) {
        int code = 0;
        if (corpus->fd < 0) {
            if (corpus->file_next == corpus->file_count)
                return 0;
            code = open_next(corpus, err);
        }
        if (code == 0)
            code = refill(corpus, err);
        if (code == 0 && corpus->split == CORPUS_SPLIT_BLANK && !corpus->in_document)
            code = skip_blank_lines(corpus, err);
        if (code != 0)
            return code;
        if (corpus->start < corpus->end || corpus->in_document) {
            take_piece(corpus, piece);
            return 1;
        }
        close_file(corpus);
    }
}
