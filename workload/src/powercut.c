/* What a power cut would leave of a directory: preloaded into the broker, this keeps, for every file under $POWERCUT_DIR,
 * its content as of its last sync, and for every directory its names as of its last sync. After kill -9 the test puts the
 * directory back together from that alone.
 *
 *   $POWERCUT_SHADOW/files/KEY        content as of the last fsync or fdatasync
 *   $POWERCUT_SHADOW/directories/KEY  lines "KEY NAME", as of the last fsync
 *
 * KEY is the inode's number and its time of birth, for numbers are used again.
 *
 * $POWERCUT_IGNORE: syncs on behalf of this site do not count, to show that the test would notice. The broker's log, of which
 * each line leaves the thread that means it in one write to stderr, says when a thread begins to sync for which site. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static __thread int ignoring;

static void said(const char *line, size_t length) {
    const char *site = getenv("POWERCUT_IGNORE");
    char field[96];
    if (!site || !*site) return;
    snprintf(field, sizeof field, "\"site\":\"%s\"", site);
    if (!memmem(line, length, field, strlen(field))) return;
    if (memmem(line, length, "sync begins", strlen("sync begins"))) ignoring = 1;
    if (memmem(line, length, "sync ended", strlen("sync ended"))) ignoring = 0;
}

static void copy(int from, const char *to) {
    char path[PATH_MAX], buffer[1 << 16];
    snprintf(path, sizeof path, "%s.%d", to, gettid());
    int out = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    off_t at = 0;
    ssize_t count;
    while (out >= 0 && (count = pread(from, buffer, sizeof buffer, at)) > 0) {
        if (write(out, buffer, count) != count) abort();
        at += count;
    }
    close(out);
    /* Whole or not at all: the process may be killed at any moment. */
    rename(path, to);
}

static int key(const char *path, char *text, size_t size) {
    struct statx status;
    if (statx(AT_FDCWD, path, AT_SYMLINK_NOFOLLOW, STATX_INO | STATX_BTIME | STATX_TYPE, &status)) return -1;
    snprintf(text, size, "%llu-%lld-%u", (unsigned long long)status.stx_ino, (long long)status.stx_btime.tv_sec,
             status.stx_btime.tv_nsec);
    return S_ISDIR(status.stx_mode);
}

static void list(const char *directory, const char *to) {
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s.%d", to, gettid());
    FILE *out = fopen(path, "w");
    DIR *open_directory = opendir(directory);
    if (!out || !open_directory) abort();
    for (struct dirent *entry; (entry = readdir(open_directory));) {
        char child[PATH_MAX], name[96];
        snprintf(child, sizeof child, "%s/%s", directory, entry->d_name);
        if (entry->d_name[0] != '.' && key(child, name, sizeof name) >= 0) fprintf(out, "%s %s\n", name, entry->d_name);
    }
    closedir(open_directory);
    fclose(out);
    rename(path, to);
}

static void synced(int fd) {
    const char *root = getenv("POWERCUT_DIR"), *shadow = getenv("POWERCUT_SHADOW");
    char link[64], path[PATH_MAX], to[PATH_MAX], name[96];
    if (!root || !shadow || ignoring) return;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return;
    path[length] = 0;
    if (strncmp(path, root, strlen(root))) return;
    int is_directory = key(path, name, sizeof name);
    if (is_directory < 0) return;
    snprintf(to, sizeof to, "%s/%s/%s", shadow, is_directory ? "directories" : "files", name);
    if (is_directory) {
        list(path, to);
        return;
    }
    /* The descriptor may be open for writing only. */
    int reader = open(link, O_RDONLY);
    if (reader < 0) return;
    copy(reader, to);
    close(reader);
}

ssize_t write(int fd, const void *bytes, size_t count) {
    static ssize_t (*real)(int, const void *, size_t);
    if (!real) real = (ssize_t (*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write");
    if (fd == STDERR_FILENO) said(bytes, count);
    return real(fd, bytes, count);
}

int fsync(int fd) {
    static int (*real)(int);
    if (!real) real = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    int outcome = real(fd);
    if (!outcome) synced(fd);
    return outcome;
}

int fdatasync(int fd) {
    static int (*real)(int);
    if (!real) real = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    int outcome = real(fd);
    if (!outcome) synced(fd);
    return outcome;
}
