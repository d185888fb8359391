/* Logs what is written to a database and the files beside it, and what of it has been synced.

   Appended to the file that WRITE_LOG names, for files whose path begins with WRITE_LOG_BASE, in
   the order in which things happened, by as many processes as there are: a line
   "KIND OFFSET SIZE NAME", then SIZE bytes. NAME is what follows the base; "." stands for nothing.

   W  so many bytes were written at an offset
   T  the file was cut, or grown, to OFFSET bytes
   U  it was deleted
   S  it was synced: all that stands before OFFSET in the log
   D  the folder was, likewise

   What is logged has happened. It is logged before the caller can do anything else. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define NEXT(name) static __typeof__(name) *next; if (!next) next = dlsym(RTLD_NEXT, #name)

static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;

static int log_file(void) {
    static int fd = -1;
    const char *path = getenv("WRITE_LOG");
    if (fd < 0 && path != NULL)
        fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    return fd;
}

/* What follows the base in a path; NULL for other files and for what holds no data. */
static const char *named(const char *path) {
    const char *base = getenv("WRITE_LOG_BASE");
    if (base == NULL || strncmp(path, base, strlen(base)) != 0)
        return NULL;
    path += strlen(base);
    if (strcmp(path, "-shm") == 0 || strncmp(path, "-qsession", 9) == 0)
        return NULL;
    return *path ? path : ".";
}

static const char *of(int fd, char *path, size_t size) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, size - 1);
    if (length <= 0)
        return NULL;
    path[length] = 0;
    return named(path);
}

/* In one system call, so that nobody else can append in the middle. */
static void say(char kind, long long offset, const char *name, const void *data, size_t size) {
    char line[4300];
    int length = snprintf(line, sizeof line, "%c %lld %zu %s\n", kind, offset, size, name);
    struct iovec parts[] = {{line, length}, {(void *)data, size}};
    if (syscall(SYS_writev, log_file(), parts, size ? 2 : 1) != (ssize_t)(length + size))
        abort();
}

#define LOGGED(fd, call, succeeded, record)                                                       \
    char path[4096];                                                                              \
    const char *name = of(fd, path, sizeof path);                                                 \
    if (name == NULL)                                                                             \
        return call;                                                                              \
    pthread_mutex_lock(&one_at_a_time);                                                           \
    __typeof__(call) result = call;                                                               \
    if (succeeded)                                                                                \
        record;                                                                                   \
    pthread_mutex_unlock(&one_at_a_time);                                                         \
    return result

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset) {
    NEXT(pwrite64);
    LOGGED(fd, next(fd, data, size, offset), result > 0, say('W', offset, name, data, result));
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) {
    NEXT(pwrite);
    LOGGED(fd, next(fd, data, size, offset), result > 0, say('W', offset, name, data, result));
}

ssize_t write(int fd, const void *data, size_t size) {
    NEXT(write);
    LOGGED(fd, next(fd, data, size), result > 0,
           say('W', lseek(fd, 0, SEEK_CUR) - result, name, data, result));
}

int ftruncate64(int fd, off64_t length) {
    NEXT(ftruncate64);
    LOGGED(fd, next(fd, length), result == 0, say('T', length, name, NULL, 0));
}

int ftruncate(int fd, off_t length) {
    NEXT(ftruncate);
    LOGGED(fd, next(fd, length), result == 0, say('T', length, name, NULL, 0));
}

int unlink(const char *path) {
    NEXT(unlink);
    const char *name = named(path);
    if (name == NULL)
        return next(path);
    pthread_mutex_lock(&one_at_a_time);
    int result = next(path);
    if (result == 0)
        say('U', 0, name, NULL, 0);
    pthread_mutex_unlock(&one_at_a_time);
    return result;
}

/* What is written while it lasts may be on the disk afterwards, or not. */
static int synced(int fd, int (*next)(int)) {
    char path[4096];
    struct stat found;
    const char *name = of(fd, path, sizeof path);
    int is_folder = name == NULL && fstat(fd, &found) == 0 && S_ISDIR(found.st_mode);
    if (name == NULL && !is_folder)
        return next(fd);
    long long before = lseek(log_file(), 0, SEEK_END);
    int result = next(fd);
    if (result == 0)
        say(is_folder ? 'D' : 'S', before, is_folder ? "." : name, NULL, 0);
    return result;
}

int fsync(int fd) {
    NEXT(fsync);
    return synced(fd, next);
}

int fdatasync(int fd) {
    NEXT(fdatasync);
    return synced(fd, next);
}
