/* SPDX-License-Identifier: Apache-2.0 */
/*
 * policy_file.c: the agent's two files, read and checked before a word of them is believed. Everything that is wrong with
 * one of them is said in one sentence; what to do about it is policy.c's affair.
 */
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "internal.h"

#define PATH_ROOM 4096

const char *hami_reason(int error) {
    switch (error) {
    case ENOENT: return "it is not there";
    case ENOTDIR: return "part of its path is not a folder";
    case EACCES: case EPERM: return "this user may not open it";
    case ELOOP: return "it is a symbolic link";
    case EROFS: return "its file system is read-only";
    case ENOSPC: case EDQUOT: return "its file system is full";
    case EFBIG: return "this process may not write files that large (RLIMIT_FSIZE)";
    case EMFILE: case ENFILE: return "too many files are open";
    case ENOMEM: return "there is no memory for it";
    case EISDIR: return "it is a folder";
    case EIO: return "its disk cannot be read";
    default: return "the system refused";
    }
}

static void *refuse(char *why, size_t length, const char *format, ...) __attribute__((format(printf, 3, 4)));
static void *refuse(char *why, size_t length, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(why, length, format, arguments);
    va_end(arguments);
    return NULL;
}

/* Opens a regular file and answers its size; -1 with the reason in `why`. */
static int open_checked(const char *path, off_t *size, char *why, size_t length) {
    int fd = open(path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0) {
        int error = errno;
        refuse(why, length, "%s: %s (error %d)", path, hami_reason(error), error);
        return -1;
    }
    struct stat found;
    if (fstat(fd, &found) != 0 || !S_ISREG(found.st_mode)) {
        refuse(why, length, "%s: it is not a regular file", path);
        close(fd);
        return -1;
    }
    *size = found.st_size;
    return fd;
}

static bool read_all(int fd, void *into, size_t length) {
    size_t done = 0;
    while (done < length) {
        ssize_t got = pread(fd, (char *)into + done, length - done, (off_t)done);
        if (got == 0 || (got < 0 && errno != EINTR)) {
            return false;
        }
        done += got > 0 ? (size_t)got : 0;
    }
    return true;
}

static uint64_t checksum(const struct hami_policy *policy, size_t size) {
    struct hami_policy_header header = policy->header;
    header.checksum = 0;
    uint64_t hash = hami_fnv1a(HAMI_FNV_START, &header, sizeof header);
    return hami_fnv1a(hash, policy->devices, size - sizeof header);
}

/* What is wrong with a policy of `size` bytes; false when nothing is. */
static bool damaged(const struct hami_policy *policy, size_t size, const char *path, char *why, size_t length) {
    const struct hami_policy_header *header = &policy->header;
    if (header->magic != HAMI_POLICY_MAGIC) {
        refuse(why, length, "%s: it is not a policy file", path);
    } else if (header->layout_version != HAMI_LAYOUT_VERSION) {
        refuse(why, length, "%s: its layout version is %u and this library reads %d; the node's agent and its library differ", path,
               (unsigned)header->layout_version, HAMI_LAYOUT_VERSION);
    } else if (header->header_size != sizeof *header || header->record_size != sizeof(struct hami_policy_device)) {
        refuse(why, length, "%s: header of %u and records of %u bytes instead of %zu and %zu", path, (unsigned)header->header_size, (unsigned)header->record_size,
               sizeof *header, sizeof(struct hami_policy_device));
    } else if (header->device_count > HAMI_MAX_DEVICES) {
        refuse(why, length, "%s: %u devices, and at most %d can be", path, (unsigned)header->device_count, HAMI_MAX_DEVICES);
    } else if (size != sizeof *header + header->device_count * sizeof(struct hami_policy_device)) {
        refuse(why, length, "%s: %zu bytes do not fit %u devices", path, size, (unsigned)header->device_count);
    } else if (checksum(policy, size) != header->checksum) {
        refuse(why, length, "%s: its checksum is wrong", path);
    } else {
        return false;
    }
    return true;
}

static const struct hami_policy *keep_policy(int fd, off_t size, const char *path, char *why, size_t length) {
    if (size < (off_t)sizeof(struct hami_policy_header) || size > (off_t)sizeof(struct hami_policy)) {
        return refuse(why, length, "%s: %lld bytes are not the size of a policy", path, (long long)size);
    }
    /* A copy, so that no later change of the file can reach into a policy that was checked. */
    struct hami_policy *policy = mmap(NULL, sizeof *policy, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (policy == MAP_FAILED) {
        return refuse(why, length, "%s: %s", path, hami_reason(ENOMEM));
    }
    if (!read_all(fd, policy, (size_t)size)) {
        refuse(why, length, "%s: it cannot be read to its end", path);
    } else if (!damaged(policy, (size_t)size, path, why, length)) {
        return policy;
    }
    hami_policy_forget(policy);
    return NULL;
}

void hami_policy_forget(const struct hami_policy *policy) {
    if (policy != NULL) {
        munmap((void *)policy, sizeof *policy);
    }
}

const struct hami_policy *hami_policy_read(const char *directory, char *why, size_t length) {
    char path[PATH_ROOM];
    if (snprintf(path, sizeof path, "%s/policy/policy.bin", directory) >= (int)sizeof path) {
        return refuse(why, length, "the path of the policy is too long");
    }
    off_t size = 0;
    int fd = open_checked(path, &size, why, length);
    if (fd < 0) {
        return NULL;
    }
    const struct hami_policy *policy = keep_policy(fd, size, path, why, length);
    close(fd);
    return policy;
}

static const struct hami_control_file *map_control(int fd, off_t size, const char *path, char *why, size_t length) {
    if (size < (off_t)sizeof(struct hami_control_file)) {
        return refuse(why, length, "%s: %lld bytes are too few for a control file", path, (long long)size);
    }
    const struct hami_control_file *control = mmap(NULL, sizeof *control, PROT_READ, MAP_SHARED, fd, 0);
    if (control == MAP_FAILED) {
        return refuse(why, length, "%s: it cannot be mapped (error %d)", path, errno);
    }
    if (control->magic == HAMI_CONTROL_MAGIC && control->layout_version == HAMI_LAYOUT_VERSION && control->size == sizeof *control) {
        return control;
    }
    refuse(why, length, "%s: it is not a control file of layout %d", path, HAMI_LAYOUT_VERSION);
    munmap((void *)control, sizeof *control);
    return NULL;
}

const struct hami_control_file *hami_control_map(const char *directory, char *why, size_t length) {
    char path[PATH_ROOM];
    if (snprintf(path, sizeof path, "%s/policy/control.bin", directory) >= (int)sizeof path) {
        return refuse(why, length, "the path of the control file is too long");
    }
    off_t size = 0;
    int fd = open_checked(path, &size, why, length);
    if (fd < 0) {
        return NULL;
    }
    const struct hami_control_file *control = map_control(fd, size, path, why, length);
    close(fd);
    return control;
}
