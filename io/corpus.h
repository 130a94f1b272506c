/*
 * corpus: files of text -> documents, in pieces of bounded size.
 *
 * Owns the list of files and one read buffer. Who reads: prep, twice (corpus_rewind between). The
 * seam for other formats is corpus_next: whatever a file holds, it comes out as documents in
 * pieces.
 *
 * Inputs are files and folders. A folder is read recursively, its files in byte order of their
 * paths; hidden entries and links are left out (so that no text is counted twice), and so are
 * files that are no text. A file that is named itself is refused where it is no text.
 *
 * One file is one document, exactly its bytes. With CORPUS_SPLIT_BLANK a document is what stands
 * between blank lines (lines of nothing but white space) or the ends of the file: its lines with
 * their newlines, without the last newline. Bytes that are no UTF-8 are kept. Empty files hold no
 * document and are counted.
 */
#ifndef SPILLWAY_IO_CORPUS_H
#define SPILLWAY_IO_CORPUS_H

#include "core/err.h"
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
    CORPUS_FORMAT_AUTO, /* refuses what looks like another format than plain text */
    CORPUS_FORMAT_TEXT, /* takes a named file as it is */
};

struct corpus_file {
    char *path; /* owned */
    uint64_t bytes;
};

struct corpus {
    struct corpus_file *files; /* owned; those that hold at least one byte */
    size_t file_count, file_capacity;
    uint64_t total_bytes;
    uint64_t empty_count;   /* files of no bytes */
    uint64_t skipped_count; /* files in folders that are no text */
    char *skipped_example;  /* owned; one of them, or NULL */
    enum corpus_split split;
    enum corpus_format format;

    /* The reader's state. */
    size_t file_next; /* the file after the one that is open */
    int fd;           /* -1: none is open */
    bool at_end;      /* the open file has no more to read */
    bool in_document;
    size_t start, end;   /* what has been read and not given out: buffer[start, end) */
    uint64_t done_bytes; /* read of all files so far */
    char *buffer;        /* owned */
};

struct corpus_piece {
    const char *text; /* borrowed until the next call */
    size_t bytes;     /* <= CORPUS_PIECE_MAX; > 0 but in a last piece that is not the first */
    bool first, last; /* of its document */
};

/* Lists the files. On an error *corpus is closed. */
int corpus_open(struct corpus *corpus, const char *const *inputs, size_t input_count,
                enum corpus_format format, enum corpus_split split, struct err *err);
void corpus_close(struct corpus *corpus); /* after an open, or an error of it */

/* 1 and the next piece; 0 at the end of the last file; a negative code. */
int corpus_next(struct corpus *corpus, struct corpus_piece *piece, struct err *err);
void corpus_rewind(struct corpus *corpus);

#endif
