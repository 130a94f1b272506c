/*
 * file: opening, sizing, locking and durably replacing files and folders.
 *
 * For small files and for the setting up of large ones; tier traffic goes through io/ring.h. Any
 * thread, blocking. Each function's error names the path and says what to do. Refuses nothing by
 * itself except that a tier's folder must be on a real drive (file_check_tier).
 */
#ifndef SPILLWAY_IO_FILE_H
#define SPILLWAY_IO_FILE_H

#include "core/err.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FILE_PATH_MAX 4096

/* "dir/name" into path (FILE_PATH_MAX bytes); refuses what does not fit. */
int file_join(char path[FILE_PATH_MAX], const char *dir, const char *name, struct err *err);

bool file_exists(const char *path);
int file_make_dirs(const char *path, struct err *err); /* like mkdir -p */
/* Removes a folder that this program has made and all below it; follows no links. What cannot be
 * removed, or is not there, is left without a word. */
void file_remove_tree(const char *path);

/* 0 when dir (which exists) can hold a tier: writable, and neither tmpfs nor ramfs (by statfs),
 * whose "files" are RAM and would break the budget. */
int file_check_tier(const char *dir, struct err *err);
/* Bytes that a user without privileges may still write under dir. */
int file_free_bytes(const char *dir, uint64_t *bytes, struct err *err);

/* Opens path for O_DIRECT reads and writes, creating it when create is set. A file system without
 * O_DIRECT is refused, and one that asks for another alignment than IO_ALIGN's. Returns the
 * descriptor in *fd. */
int file_open_direct(int *fd, const char *path, bool create, bool writable, struct err *err);
/* Gives the open file exactly this size with its blocks allocated (fallocate), so that a full disk
 * is met here and not in the middle of a run. */
int file_allocate(int fd, const char *path, uint64_t bytes, struct err *err);

/* Takes an exclusive lock on dir/.lock that lives as long as the process (or until file_unlock).
 * Says which process holds it otherwise. */
int file_lock(int *fd, const char *dir, struct err *err);
void file_unlock(int fd); /* -1 is legal */

/* Whole small file into memory (mem_free), zero-terminated beyond *bytes; refuses more than
 * max_bytes. */
int file_read_all(const char *path, uint64_t max_bytes, char **data, size_t *bytes,
                  struct err *err);
/* path + ".tmp" written, fsynced, renamed over path, folder fsynced: a reader sees the old or the
 * new text, whole. */
int file_replace(const char *path, const void *data, size_t bytes, struct err *err);
int file_sync_dir(const char *dir, struct err *err);
/* The last steps of replacing a file that was written to tmp_path through fd: fsync, rename over
 * path, fsync of the folder. Neither closes fd nor removes tmp_path when it fails. */
int file_commit(int fd, const char *tmp_path, const char *path, struct err *err);
/* pread(2) until all is read; a file that ends before is ERR_CORRUPT, with the offset. */
int file_read_at(int fd, void *data, size_t bytes, uint64_t offset, const char *path,
                 struct err *err);
/* write(2) until all is written. path is for the message. */
int file_write_all(int fd, const void *data, size_t bytes, const char *path, struct err *err);

#endif
