/* SPDX-License-Identifier: Apache-2.0 */
/*
 * state.c: the state file: found, checked, made ready by whichever process comes first, and mapped for the rest of the
 * process's life. Its descriptor is kept, out of the way at a high number, because record locks need one.
 */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "internal.h"

#define PATH_ROOM 4096
#define HIGH_DESCRIPTOR 200
#define INITIALISE_PATIENCE_MS 10000 /* it takes microseconds; a stopped process may be at it */

static _Atomic(struct hami_state_file *) state_now;
static _Atomic int descriptor = -1; /* inherited by a child, like the mapping; record locks are not */
static _Atomic uint64_t file_device, file_inode;

static struct hami_state_file *refused(const char *path, const char *what, int error) {
    if (error != 0) {
        hami_say_once("state", "%s: %s: %s (error %d); every device is refused", path, what, hami_reason(error), error);
    } else {
        hami_say_once("state", "%s: %s; every device is refused", path, what);
    }
    return NULL;
}

/* A program closes descriptors by their number, low ones first of all. */
static int move_high(int fd) {
    int moved = fcntl(fd, F_DUPFD_CLOEXEC, HIGH_DESCRIPTOR);
    if (moved < 0) {
        return fd; /* fewer than 200 allowed: where it is will do */
    }
    close(fd);
    return moved;
}

static int open_state(char *path, size_t room) {
    const char *directory = hami_directory();
    if (directory == NULL || snprintf(path, room, "%s/state/state.bin", directory) >= (int)room) {
        errno = ENOENT;
        return -1;
    }
    int fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);
    return fd < 0 ? fd : move_high(fd);
}

/* Blocks for the whole file, so that a full disk is an error here and not a SIGBUS later. 0 or an errno. */
static int allocate(int fd, off_t size) {
    const off_t whole = (off_t)sizeof(struct hami_state_file);
    struct rlimit limit;
    if (size < whole && getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY && limit.rlim_cur < (rlim_t)whole) {
        return EFBIG; /* asked before: the kernel would answer with SIGXFSZ, which ends the program */
    }
    int error;
    do {
        error = posix_fallocate(fd, 0, whole);
    } while (error == EINTR);
    return error;
}

static void write_header(struct hami_state_file *state) {
    state->layout_version = HAMI_LAYOUT_VERSION;
    state->size = sizeof *state;
    hami_write_point(HAMI_POINT_INITIALISE_HEADER);
    state->magic = HAMI_STATE_MAGIC;
    atomic_store_explicit(&state->ready, 1, memory_order_release);
    hami_write_point(HAMI_POINT_INITIALISE_READY);
}

static bool header_fits(const struct hami_state_file *state) {
    return state->magic == HAMI_STATE_MAGIC && state->layout_version == HAMI_LAYOUT_VERSION && state->size == sizeof *state;
}

/* A file of zeroes, or one whose first user died over it, or one that the agent has given its header. */
static bool header_empty(const struct hami_state_file *state) {
    return atomic_load(&state->ready) == 0 && (state->magic == 0 || header_fits(state));
}

/* Whether somebody has made it ready: then its blocks are there, and emulating fallocate would disturb those who use it. */
static bool is_ready(int fd) {
    uint32_t ready = 0;
    return pread(fd, &ready, sizeof ready, offsetof(struct hami_state_file, ready)) == (ssize_t)sizeof ready && ready != 0;
}

/* Under the lock on byte 0, unless the file is ready. */
static struct hami_state_file *prepare(int fd, const char *path) {
    struct stat found;
    if (fstat(fd, &found) != 0 || !S_ISREG(found.st_mode)) {
        return refused(path, "it is not a regular file", 0);
    }
    if (found.st_size != 0 && found.st_size != (off_t)sizeof(struct hami_state_file)) {
        return refused(path, "it is of another layout (its size differs): the node's agent and this library differ", 0);
    }
    atomic_store(&file_device, (uint64_t)found.st_dev);
    atomic_store(&file_inode, (uint64_t)found.st_ino);
    int error = is_ready(fd) ? 0 : allocate(fd, found.st_size);
    if (error != 0) {
        return refused(path, "no room can be had for it", error);
    }
    hami_write_point(HAMI_POINT_INITIALISE_ALLOCATED);
    struct hami_state_file *state = mmap(NULL, sizeof *state, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (state == MAP_FAILED) {
        return refused(path, "it cannot be mapped", errno);
    }
    const char *wrong = NULL;
    if (header_empty(state)) {
        error = hami_books_initialise(state);
        hami_write_point(HAMI_POINT_INITIALISE_MUTEX);
        if (error == 0) {
            write_header(state);
            return state;
        }
        wrong = "its lock cannot be made";
    } else if (!header_fits(state) || atomic_load_explicit(&state->ready, memory_order_acquire) != 1) {
        wrong = "it is of another layout, or damaged: the node's agent and this library differ, or a process wrote over it";
    } else if (!hami_books_sound(state)) {
        wrong = "its lock was written over";
    } else {
        return state;
    }
    munmap(state, sizeof *state);
    return refused(path, wrong, error);
}

static struct hami_state_file *map_state(int fd, const char *path) {
    if (is_ready(fd)) {
        return prepare(fd, path);
    }
    if (!hami_lock_byte(fd, HAMI_LOCK_INITIALISE, INITIALISE_PATIENCE_MS)) {
        return refused(path, "it cannot be locked to make it ready", errno);
    }
    hami_write_point(HAMI_POINT_INITIALISE_LOCKED);
    struct hami_state_file *state = prepare(fd, path);
    hami_unlock_byte(fd, HAMI_LOCK_INITIALISE);
    return state;
}

/* Under join_lock. */
static struct hami_state_file *find_state(void) {
    char path[PATH_ROOM] = "";
    int fd = open_state(path, sizeof path);
    if (fd < 0) {
        return refused(path, "the container's state file cannot be opened for writing", errno);
    }
    struct hami_state_file *state = map_state(fd, path);
    if (state == NULL) {
        close(fd);
        return NULL;
    }
    atomic_store(&descriptor, fd);
    atomic_store_explicit(&state_now, state, memory_order_release);
    return state;
}

struct hami_state_file *hami_state(void) {
    struct hami_state_file *state = atomic_load_explicit(&state_now, memory_order_acquire);
    if (HAMI_LIKELY(state != NULL)) {
        return state;
    }
    if (hami_policy() == NULL) {
        return NULL;
    }
    HAMI_KEEP_ERRNO;
    struct hami_process *process = hami_process();
    hami_local_lock(&process->join_lock);
    state = atomic_load(&state_now);
    if (state == NULL && hami_now_ns() >= atomic_load(&process->join_again_ns)) {
        state = find_state();
        if (state == NULL) {
            atomic_store(&process->join_again_ns, hami_now_ns() + HAMI_JOIN_AGAIN_NS);
        }
    }
    hami_local_unlock(&process->join_lock);
    return state;
}

static bool still_ours(int fd) {
    struct stat found;
    return fd >= 0 && fstat(fd, &found) == 0 && (uint64_t)found.st_dev == atomic_load(&file_device) && (uint64_t)found.st_ino == atomic_load(&file_inode);
}

int hami_state_descriptor(void) {
    int fd = atomic_load(&descriptor);
    if (still_ours(fd)) {
        return fd;
    }
    char path[PATH_ROOM];
    int opened = open_state(path, sizeof path);
    if (!still_ours(opened)) { /* gone, out of reach (chroot), or another file by now */
        if (opened >= 0) {
            close(opened);
        }
        return -1;
    }
    if (!atomic_compare_exchange_strong(&descriptor, &fd, opened)) {
        close(opened); /* another thread was quicker. Closing drops this process's record locks: */
        opened = fd;
    }
    hami_slot_hold(opened);
    return opened;
}
