/* Preloaded into a node: lies about the wall clock, and lets syncs fail, as the file $LAB_FAULTS says at the moment.
 * It is mapped, so that whoever runs the nodes changes it while they run. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

struct faults {
    int64_t clock_seconds; /* Added to CLOCK_REALTIME. */
    int64_t sync_errno;    /* What fsync and fdatasync fail with; 0: they do what they do. */
};

static const volatile struct faults none, *faults = &none;

__attribute__((constructor)) static void map(void) {
    const char *path = getenv("LAB_FAULTS");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *mapped = fd < 0 ? MAP_FAILED : mmap(NULL, sizeof *faults, PROT_READ, MAP_SHARED, fd, 0);
    if (mapped != MAP_FAILED) faults = mapped;
    if (fd >= 0) close(fd);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int outcome = real(clock, now);
    if (!outcome && clock == CLOCK_REALTIME) now->tv_sec += faults->clock_seconds;
    return outcome;
}

static int failing(void) {
    int number = faults->sync_errno;
    if (number) errno = number;
    return number;
}

int fsync(int fd) {
    static int (*real)(int);
    if (!real) real = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    return failing() ? -1 : real(fd);
}

int fdatasync(int fd) {
    static int (*real)(int);
    if (!real) real = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    return failing() ? -1 : real(fd);
}
