#include "io/tree.h"
#include "core/base.h"
#include "core/mem.h"
#include "io/file.h"
#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static void add_file(struct tree *tree, const char *path, uint32_t input, bool found)
{
    size_t bytes = strlen(path) + 1;
    if (tree->file_count == tree->file_capacity) {
        tree->file_capacity = MAX(tree->file_capacity * 2, (uint64_t)64);
        tree->files = mem_realloc(tree->files, tree->file_capacity, sizeof(*tree->files));
    }
    if (tree->text_bytes + bytes > tree->text_capacity) {
        tree->text_capacity = MAX(tree->text_capacity * 2, tree->text_bytes + bytes + 4096);
        tree->text = mem_realloc(tree->text, tree->text_capacity, 1);
    }
    tree->files[tree->file_count++] = (struct tree_file){tree->text_bytes, input, found};
    memcpy(tree->text + tree->text_bytes, path, bytes);
    tree->text_bytes += bytes;
}

/* ---------------------------------------------------------------------------------------------
 * Folders
 * ------------------------------------------------------------------------------------------- */

/* Folders that are still to be read. Each is found in one that was read before, and links are not
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

static void note_unreadable(struct tree *tree, const char *path)
{
    tree->unreadable_count++;
    if (tree->unreadable_example == NULL)
        tree->unreadable_example = mem_strdup(path);
}

/* DT_DIR, DT_REG or anything else; some file systems do not tell with the name. */
static unsigned char entry_type(const struct dirent *entry, const char *path)
{
    struct stat status;
    if (entry->d_type != DT_UNKNOWN)
        return entry->d_type;
    if (lstat(path, &status) != 0)
        return DT_UNKNOWN;
    return S_ISDIR(status.st_mode) ? DT_DIR : S_ISREG(status.st_mode) ? DT_REG : DT_UNKNOWN;
}

static int add_entry(struct tree *tree, struct folders *folders, const char *dir,
                     const struct dirent *entry, uint32_t input, struct err *err)
{
    char path[FILE_PATH_MAX];
    if (entry->d_name[0] == '.')
        return 0;
    int code = file_join(path, dir, entry->d_name, err);
    if (code != 0)
        return code;
    unsigned char type = entry_type(entry, path);
    if (type == DT_DIR)
        add_folder(folders, path);
    else if (type == DT_REG)
        add_file(tree, path, input, true);
    return 0;
}

static bool is_left_out(const struct tree *tree, int fd)
{
    struct stat status;
    return tree->leave_inode != 0 && fstat(fd, &status) == 0 &&
           status.st_dev == tree->leave_device && status.st_ino == tree->leave_inode;
}

static int read_folder(struct tree *tree, struct folders *folders, size_t index, uint32_t input,
                       struct err *err)
{
    const char *dir = folders->paths[index];
    DIR *stream = opendir(dir);
    if (stream == NULL && index > 0) {
        note_unreadable(tree, dir);
        return 0;
    }
    if (stream == NULL)
        return err_set_errno(err, errno, "cannot read the folder %s", dir);
    bool leave = is_left_out(tree, dirfd(stream));
    int code = leave && index == 0
                   ? err_set(err, ERR_INPUT,
                             "%s is the folder that is written to: its own files would be taken "
                             "for text; give another one to --out",
                             dir)
                   : 0;
    struct dirent *entry;
    errno = 0;
    while (code == 0 && !leave && (entry = readdir(stream)) != NULL) {
        code = add_entry(tree, folders, dir, entry, input, err);
        errno = 0;
    }
    if (code == 0 && errno != 0)
        code = err_set_errno(err, errno, "cannot read the folder %s", dir);
    closedir(stream);
    return code;
}

static int compare_files(const void *a, const void *b, void *text)
{
    return strcmp((const char *)text + ((const struct tree_file *)a)->path,
                  (const char *)text + ((const struct tree_file *)b)->path);
}

static int add_tree(struct tree *tree, const char *root, uint32_t input, struct err *err)
{
    struct folders folders = {0};
    uint64_t first = tree->file_count;
    int code = 0;
    tree->has_folders = true;
    add_folder(&folders, root);
    for (size_t i = 0; code == 0 && i < folders.count; i++)
        code = read_folder(tree, &folders, i, input, err);
    for (size_t i = 0; i < folders.count; i++)
        mem_free(folders.paths[i]);
    mem_free(folders.paths);
    if (tree->file_count > first)
        qsort_r(tree->files + first, tree->file_count - first, sizeof(*tree->files), compare_files,
                tree->text);
    return code;
}

/* ---------------------------------------------------------------------------------------------
 * Inputs
 * ------------------------------------------------------------------------------------------- */

static int add_stdin(struct tree *tree, uint32_t input, struct err *err)
{
    for (uint64_t i = 0; i < tree->file_count; i++)
        if (strcmp(tree_path(tree, i), TREE_STDIN) == 0)
            return err_set(err, ERR_INPUT, "standard input (-) is named twice: name it once");
    add_file(tree, TREE_STDIN, input, false);
    return 0;
}

static int add_input(struct tree *tree, const char *path, uint32_t input, struct err *err)
{
    struct stat status;
    if (strcmp(path, TREE_STDIN) == 0)
        return add_stdin(tree, input, err);
    if (stat(path, &status) != 0)
        return errno == ENOENT
                   ? err_set(err, ERR_INPUT, "there is no text %s: name a file or a folder", path)
                   : err_set_errno(err, errno, "cannot read the text %s", path);
    if (S_ISDIR(status.st_mode))
        return add_tree(tree, path, input, err);
    if (!S_ISREG(status.st_mode))
        return err_set(err, ERR_INPUT,
                       "%s is neither a file nor a folder: give what a pipe holds as standard "
                       "input, named -",
                       path);
    add_file(tree, path, input, false);
    return 0;
}

int tree_open(struct tree *tree, const char *const *inputs, size_t input_count,
              const char *leave_out, struct err *err)
{
    struct stat status;
    *tree = (struct tree){0};
    if (leave_out != NULL && stat(leave_out, &status) == 0) {
        tree->leave_device = status.st_dev;
        tree->leave_inode = status.st_ino;
    }
    int code = 0;
    for (size_t i = 0; code == 0 && i < input_count; i++)
        code = add_input(tree, inputs[i], (uint32_t)i, err);
    if (code != 0)
        tree_close(tree);
    return code;
}

void tree_close(struct tree *tree)
{
    mem_free(tree->files);
    mem_free(tree->text);
    mem_free(tree->unreadable_example);
    *tree = (struct tree){0};
}

const char *tree_path(const struct tree *tree, uint64_t file)
{
    ASSERT(file < tree->file_count);
    return tree->text + tree->files[file].path;
}

uint64_t tree_memory_bytes(const struct tree *tree)
{
    return tree->file_capacity * sizeof(*tree->files) + tree->text_capacity;
}
