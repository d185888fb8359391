/* Logs when a write-ahead log is written to, and when it has been synced, and by which thread.

   Lines are appended to the file that SYNC_LOG names, in the order in which things happened:
   "write TID" before data goes to a file whose name ends in "-wal", "syncing TID" before fsync() or
   fdatasync() of one is called and "synced TID" after it has returned, "other TID" after either has
   returned for any other file. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

static int is_wal(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path);
    return length > 4 && memcmp(path + length - 4, "-wal", 4) == 0;
}

static void say(const char *what) {
    static int log_fd = -1;
    const char *path = getenv("SYNC_LOG");
    if (log_fd < 0 && path != NULL)
        log_fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (log_fd < 0)
        return;
    char line[64];
    int length = snprintf(line, sizeof line, "%s %ld\n", what, syscall(SYS_gettid));
    syscall(SYS_write, log_fd, line, length);
}

#define NEXT(name) static __typeof__(name) *next; if (!next) next = dlsym(RTLD_NEXT, #name)

int fsync(int fd) {
    NEXT(fsync);
    int wal = is_wal(fd);
    if (wal)
        say("syncing");
    int result = next(fd);
    say(wal ? "synced" : "other");
    return result;
}

int fdatasync(int fd) {
    NEXT(fdatasync);
    int wal = is_wal(fd);
    if (wal)
        say("syncing");
    int result = next(fd);
    say(wal ? "synced" : "other");
    return result;
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset) {
    NEXT(pwrite64);
    if (is_wal(fd))
        say("write");
    return next(fd, data, size, offset);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) {
    NEXT(pwrite);
    if (is_wal(fd))
        say("write");
    return next(fd, data, size, offset);
}

ssize_t write(int fd, const void *data, size_t size) {
    NEXT(write);
    if (is_wal(fd))
        say("write");
    return next(fd, data, size);
}
