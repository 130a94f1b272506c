/*
 * corpus: inputs of any kind -> documents, in pieces of bounded size.
 *
 * Inputs are files, folders and standard input (io/tree.h), compressed or not (io/unpack.h). What a
 * file holds is told by its content, or by the user:
 *
 *   plain text  one document, exactly its bytes; with CORPUS_SPLIT_BLANK a document is what stands
 *               between blank lines (lines of nothing but white space) or the ends of the file: its
 *               lines with their newlines, without the last newline
 *   JSON lines  one document a line, in the text field
 *   a wiki dump one document an article: title, blank line, prose
 *
 * Bytes that are no UTF-8 are kept. What cannot be taken is left out and counted: files in folders
 * that are no text, are empty, or cannot be read; lines and pages that are malformed, too long or
 * hold no text; the rest of a compressed file in a folder that is damaged. A file that the user has
 * named is refused instead where it is no text, and where it is damaged.
 *
 * Who reads: prep, more than once (corpus_rewind between). What is costly to read again is kept in
 * a file without a name below spool_dir, and read from there (io/spool.h); plain files are read
 * again themselves. Documents come in the same order whatever the number of threads.
 */
#ifndef SPILLWAY_IO_CORPUS_H
#define SPILLWAY_IO_CORPUS_H

#include "core/err.h"
#include "io/records.h"
#include "io/tree.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The most bytes of one piece. A longer document is torn where pretoken_cut allows it, so that its
 * pieces give the same tokens as the whole; a run of this many bytes without any white space is
 * torn between characters. */
#define CORPUS_PIECE_MAX (128u << 10)

enum corpus_split {
    CORPUS_SPLIT_FILE,
    CORPUS_SPLIT_BLANK,
};

enum corpus_format {
    CORPUS_FORMAT_AUTO, /* by content; refuses what is none of these */
    CORPUS_FORMAT_TEXT, /* takes a named file as it is */
    CORPUS_FORMAT_JSONL,
    CORPUS_FORMAT_WIKI,
};

struct corpus_settings {
    const char *const *inputs; /* borrowed, with what they point to */
    size_t input_count;
    const char *leave_out; /* a folder within an input that is no text (tree.h); NULL: none */
    enum corpus_format format;
    enum corpus_split split;
    const char *text_field; /* of JSON lines; NULL: "text" */
    struct pool *pool;      /* NULL: the caller alone */
    const char *spool_dir;  /* exists, or is made before the first corpus_next; NULL: what is costly
                               is read again, and standard input is refused */
    const char *spool_name; /* in spool_dir; NULL: none, and nothing is left for another process */
    uint64_t ram_budget;    /* of the process: sizes buffers; 0: small ones */
};

/* Files that were left out, with one of them. */
struct corpus_tally {
    uint64_t count;
    char *example; /* owned; NULL where count is 0 */
};
enum corpus_left { CORPUS_EMPTY, CORPUS_SKIPPED, CORPUS_UNREADABLE, CORPUS_DAMAGED, CORPUS_LEFTS };

/* What the first pass counts. */
struct corpus_counts {
    uint64_t file_count; /* files that held text */
    uint64_t jsonl_files, wiki_files, packed_files;
    uint64_t left[CORPUS_LEFTS];
    struct records_count records;
};

/* Between two pieces. */
struct corpus_position {
    uint64_t file, pieces;       /* of that file, pieces were given out */
    uint64_t closed_bytes;       /* of the files before it */
    uint64_t spool_bytes;        /* before it; what was kept apart, or is read from there */
    struct corpus_counts counts; /* up to the beginning of that file */
};

struct corpus {
    struct corpus_settings settings;
    struct tree tree;
    uint64_t total_bytes; /* of the files, as they are on the drive */
    bool total_known;     /* else there are files whose size was not asked for */
    uint64_t file_count;  /* files that held text, after the first pass */
    uint64_t jsonl_files, wiki_files, packed_files;
    struct corpus_tally left[CORPUS_LEFTS];

    /* The reader's state. */
    struct unpack *unpack;   /* owned */
    struct records *records; /* owned; NULL until one is needed */
    struct fetch *fetch;     /* owned; NULL: no folders, or the kernel cannot */
    bool fetch_failed;       /* the kernel cannot: files are read one by one */
    struct spool *spool;     /* owned; NULL: not needed */
    bool spooled;            /* all is in the spool */
    bool reading_spool;
    bool first_pass;    /* what is met is counted */
    uint64_t unpack_ns; /* spent in reading and decompressing */
    uint64_t file_next;
    uint64_t closed_bytes;                   /* of the files before the open one */
    uint64_t pieces;                         /* given out of the open file */
    struct corpus_position opened;           /* where the open file begins */
    int fd;                                  /* -1: no file is open */
    size_t head_bytes;                       /* of the open file, where it is read from memory */
    const struct records_kind *records_kind; /* of the open file; NULL: plain text */
    bool open, at_end, in_document;
    bool cut_short;     /* the open file is damaged, and was read to there */
    size_t start, end;  /* what has been read and not given out: buffer[start, end) */
    char *buffer;       /* owned */
    const char *record; /* the rest of the document at hand */
    size_t record_bytes;
};

struct corpus_piece {
    const char *text; /* borrowed until the next call */
    size_t bytes;     /* <= CORPUS_PIECE_MAX; > 0 but in a last piece that is not the first */
    uint32_t input;   /* index of the input that it is from */
    bool first, last; /* of its document */
};

/* Lists the files, and looks into those that the user has named and, unless they are thousands,
 * into all. On an error *corpus is closed. */
int corpus_open(struct corpus *corpus, const struct corpus_settings *settings, struct err *err);
void corpus_close(struct corpus *corpus); /* after an open, or an error of it */

/* 1 and the next piece; 0 at the end of the last file; a negative code. */
int corpus_next(struct corpus *corpus, struct corpus_piece *piece, struct err *err);
/* To the first piece. The first pass is over when corpus_next has returned 0. */
int corpus_rewind(struct corpus *corpus, struct err *err);

/* Where the next piece begins. */
void corpus_tell(const struct corpus *corpus, struct corpus_position *position);
/* In the place of corpus_rewind, after the first pass: to a position of such a pass. */
int corpus_seek(struct corpus *corpus, const struct corpus_position *position, struct err *err);
/* What is kept apart reaches the drive, so that another process can go on with it. */
int corpus_sync(struct corpus *corpus, struct err *err);
/* Before the first corpus_next or corpus_rewind: another process has read these inputs up to the
 * position, or (over) to the end of its first pass; the text that it kept apart is taken over. The
 * first pass is then not to be rewound. examples: of each kind that was left out, or NULL. */
int corpus_resume(struct corpus *corpus, const struct corpus_position *position,
                  const char *const examples[CORPUS_LEFTS], bool over, struct err *err);

/* Whether the text was kept apart, and so is all known after the first pass. */
bool corpus_is_spooled(const struct corpus *corpus);
/* How much of the pass is done, 0 to 1; negative where nobody knows. */
double corpus_done(const struct corpus *corpus);
/* What the list of files and large buffers take, beyond UNPACK_THREAD_BYTES for each thread. */
uint64_t corpus_memory_bytes(const struct corpus *corpus);
/* Time spent in taking text out of lines and pages. */
uint64_t corpus_convert_ns(const struct corpus *corpus);
/* Lines and pages that were left out; NULL where there were none of either. */
const struct records_count *corpus_records(const struct corpus *corpus);

#endif
