/* Makes fsync and fdatasync take QSESSION_FSYNC_US microseconds more, as a cloud disk does. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>

static int after(int result)
{
    const char *text = getenv("QSESSION_FSYNC_US");
    long us = text ? atol(text) : 0;
    struct timespec pause = {us / 1000000, us % 1000000 * 1000};
    while (nanosleep(&pause, &pause) != 0) {
    }
    return result;
}

int fsync(int fd)
{
    static int (*real)(int);
    if (!real)
        real = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    return after(real(fd));
}

int fdatasync(int fd)
{
    static int (*real)(int);
    if (!real)
        real = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    return after(real(fd));
}
