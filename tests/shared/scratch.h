/*
 * scratch: a folder of its own for each test binary, on a real drive (tests/run.sh sets TMPDIR to
 * a folder below build/; /tmp may be a tmpfs, which knows no O_DIRECT). Without TMPDIR it is made
 * below the working folder's build/. Removed when the process exits normally.
 */
#ifndef SPILLWAY_TESTS_SHARED_SCRATCH_H
#define SPILLWAY_TESTS_SHARED_SCRATCH_H

/* The folder's path; made by the first call. */
const char *scratch_dir(void);

/* "<scratch_dir>/<name>" in one of eight static buffers, used in turn. */
const char *scratch_path(const char *name);

/* Makes name, with its parents, below the folder and writes text there. Returns its path. */
const char *scratch_write(const char *name, const char *text);

/* Removes the file or folder at path with all that is in it; nothing there is legal. */
void scratch_remove(const char *path);

/* The whole file at path as a string, to be freed with free; fails the test when it is not there.
 */
char *scratch_read(const char *path);

#endif
