/* SPDX-License-Identifier: Apache-2.0 */
/*
 * liveness.c: who is dead. A process holds a record lock on one byte of the state file for as long as it lives; the kernel
 * takes it away at its death, in any PID namespace, and no PID can be confused with another.
 *
 * The lock is a classic one (F_SETLK), which belongs to the process: an OFD lock would go on living in a forked child that
 * never calls us. Either kind is seen by either kind of question, so that the agent may ask with F_OFD_GETLK.
 *
 * A free byte alone proves nothing: a daemon closes all its descriptors (or any descriptor of this file) and lives on. So the PID and its start time must say
 * it too; and a program that called exec, and so lost what it held although its PID goes on, is known by its mappings.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"

#define START_FIELD 22 /* of /proc/<pid>/stat, counted from 1 */
#define MAPS_BLOCK 4096
#define TRIES_PER_MS 10

/* Asked again and again instead of waited for in the kernel: a stopped process must not stop the others for ever, and the kernel's
 * guess at deadlocks (by process) can be misled by the program's own locks. */
bool hami_lock_byte(int fd, int64_t byte, unsigned patience_ms) {
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = (off_t)byte, .l_len = 1};
    const struct timespec little = {.tv_sec = 0, .tv_nsec = 1000000 / TRIES_PER_MS};
    for (uint64_t tries = (uint64_t)patience_ms * TRIES_PER_MS + 1; tries > 0;) {
        if (fcntl(fd, F_SETLK, &lock) == 0) {
            return true;
        }
        if (errno != EACCES && errno != EAGAIN && errno != EINTR) {
            return false;
        }
        if (errno == EINTR) {
            continue;
        }
        if (--tries > 0) {
            clock_nanosleep(CLOCK_MONOTONIC, 0, &little, NULL);
        }
    }
    return false;
}

void hami_unlock_byte(int fd, int64_t byte) {
    struct flock lock = {.l_type = F_UNLCK, .l_whence = SEEK_SET, .l_start = (off_t)byte, .l_len = 1};
    fcntl(fd, F_SETLK, &lock);
}

/* When it cannot be known, it counts as held. */
static bool byte_held(int fd, int64_t byte) {
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = (off_t)byte, .l_len = 1};
    return fd < 0 || fcntl(fd, F_GETLK, &lock) != 0 || lock.l_type != F_UNLCK;
}

bool hami_slot_unlocked(int fd, size_t index) {
    return !byte_held(fd, HAMI_LOCK_SLOTS + (int64_t)index);
}

static int open_proc(uint64_t pid, const char *file) {
    char path[64];
    if (pid == 0) {
        snprintf(path, sizeof path, "/proc/self/%s", file);
    } else {
        snprintf(path, sizeof path, "/proc/%llu/%s", (unsigned long long)pid, file);
    }
    return open(path, O_RDONLY | O_CLOEXEC);
}

static ssize_t read_some(int fd, char *into, size_t room) {
    ssize_t got;
    do {
        got = read(fd, into, room);
    } while (got < 0 && errno == EINTR);
    return got;
}

bool hami_process_stat(uint64_t pid, uint64_t *start_ticks, char *letter) {
    int fd = open_proc(pid, "stat");
    if (fd < 0) {
        return false;
    }
    char text[1024];
    ssize_t length = read_some(fd, text, sizeof text - 1);
    close(fd);
    if (length <= 0) {
        return false;
    }
    text[length] = '\0';
    char *field = strrchr(text, ')'); /* the name before it may hold anything */
    if (field == NULL || field[1] != ' ') {
        return false;
    }
    field += 2;
    *letter = *field;
    for (int number = 3; number < START_FIELD; number++) {
        field = strchr(field, ' ');
        if (field == NULL) {
            return false;
        }
        field++;
    }
    *start_ticks = strtoull(field, NULL, 10);
    return true;
}

/* "<device> <inode>" as the kernel writes them in /proc/<pid>/maps, from the line that begins with `line`. */
static bool same_file(const char *line, const char *wanted) {
    const char *field = line;
    for (int skipped = 0; skipped < 3; skipped++) {
        field = strchr(field, ' ');
        if (field == NULL) {
            return false;
        }
        field++;
    }
    size_t length = strlen(wanted);
    return strncmp(field, wanted, length) == 0 && (field[length] == ' ' || field[length] == '\0');
}

typedef bool (*line_test)(const char *line, const void *context);

static bool is_wanted_file(const char *line, const void *context) {
    return same_file(line, context);
}

static bool starts_at(const char *line, const void *context) {
    return strtoull(line, NULL, 16) == (uint64_t)(uintptr_t)context;
}

/* 1: a line of the process's maps passes, and is copied to `line`; 0: none does; -1: they cannot be read to their end. */
static int find_mapping(uint64_t pid, line_test passes, const void *context, char *line, size_t room) {
    int fd = open_proc(pid, "maps");
    if (fd < 0) {
        return -1;
    }
    char block[MAPS_BLOCK];
    size_t used = 0;
    int answer = 0;
    ssize_t got;
    while (answer == 0 && (got = read_some(fd, block, sizeof block)) > 0) {
        for (ssize_t i = 0; i < got && answer == 0; i++) {
            if (block[i] != '\n') {
                if (used + 1 < room) {
                    line[used++] = block[i]; /* of a long path only the beginning is kept; the fields that count are before it */
                }
                continue;
            }
            line[used] = '\0';
            used = 0;
            answer = passes(line, context) ? 1 : 0;
        }
    }
    if (answer == 0 && got < 0) {
        answer = -1;
    }
    close(fd);
    return answer;
}

/* How this very mapping is called in /proc: the file's own numbers differ from those on some file systems. */
static bool own_file(const struct hami_state_file *state, char *wanted, size_t room) {
    char line[256];
    if (find_mapping(0, starts_at, state, line, sizeof line) != 1) {
        return false;
    }
    const char *field = line;
    for (int skipped = 0; skipped < 3; skipped++) {
        field = strchr(field, ' ');
        if (field == NULL) {
            return false;
        }
        field++;
    }
    const char *end = strchr(field, ' '); /* behind the device */
    end = end != NULL ? strchr(end + 1, ' ') : NULL; /* behind the inode */
    size_t length = end != NULL ? (size_t)(end - field) : strlen(field);
    if (length >= room) {
        return false;
    }
    memcpy(wanted, field, length);
    wanted[length] = '\0';
    return true;
}

/* True only when all the process's mappings were read and the state file is not among them: it called exec since. */
static bool mapped_no_more(const struct hami_state_file *state, uint64_t pid) {
    char wanted[64];
    char line[256];
    return own_file(state, wanted, sizeof wanted) && find_mapping(pid, is_wanted_file, wanted, line, sizeof line) == 0;
}

bool hami_slot_dead(int fd, const struct hami_state_file *state, size_t index, uint64_t word) {
    const struct hami_slot *slot = &state->slots[index];
    if (byte_held(fd, HAMI_LOCK_SLOTS + (int64_t)index)) {
        return false;
    }
    uint64_t pid = atomic_load_explicit(&slot->pid, memory_order_relaxed);
    uint64_t start_ticks = atomic_load_explicit(&slot->start_ticks, memory_order_relaxed);
    if (hami_slot_kind(word) == HAMI_SLOT_STATE_CLAIMING || pid == 0 || pid > INT32_MAX) {
        return true; /* the lock comes first: who died while claiming has none, and no PID that could be asked for */
    }
    uint64_t found_ticks = 0;
    char letter = '\0';
    if (!hami_process_stat(pid, &found_ticks, &letter)) {
        return kill((pid_t)pid, 0) != 0 && errno == ESRCH;
    }
    if (letter == 'Z' || letter == 'X' || (start_ticks != 0 && start_ticks != found_ticks)) {
        return true;
    }
    return mapped_no_more(state, pid);
}
