/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What every fake driver library needs: the machine it plays, read from one text file.
 *
 *     [machine]
 *     driver = 550.90.07
 *     [device 0]
 *     uuid = GPU-…
 *     health = ok            # "lost", "error", …: whatever the fake of this vendor documents
 *
 * The file is read again whenever it was replaced, so writing to it is how a device is lost, comes back or grows busy.
 * Header-only: a fake is one C file or several, which share what was read. Values that `hf_str` hands out stay valid until the thread's next `hf_load`.
 */
#ifndef HAMI_FAKE_H
#define HAMI_FAKE_H

#include <ctype.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define HF_EXPORT __attribute__((visibility("default")))
#define HF_SHARED __attribute__((weak, visibility("hidden"))) /* one for all files of a library, and no other's */
#define HF_MAX_ENTRIES 4096
#define HF_FIELD 64
#define HF_VALUE 256

struct hf_entry {
    char section[HF_FIELD];
    int index; /* the number in "[device 3]"; -1 for a section without one */
    char key[HF_FIELD];
    char value[HF_VALUE];
};

HF_SHARED struct hf_entry hf_entries[HF_MAX_ENTRIES];
HF_SHARED int hf_length;
HF_SHARED struct stat hf_seen;
HF_SHARED pthread_mutex_t hf_mutex = PTHREAD_MUTEX_INITIALIZER;

static char *hf_trim(char *text)
{
    while (isspace((unsigned char)*text))
        text++;
    char *end = text + strlen(text);
    while (end > text && isspace((unsigned char)end[-1]))
        *--end = '\0';
    return text;
}

static void hf_copy(char *to, size_t size, const char *from)
{
    snprintf(to, size, "%s", from);
}

/* "device 3" -> section "device", index 3; "machine" -> "machine", -1. */
static void hf_split_section(char *header, char *section, int *index)
{
    char *space = strchr(header, ' ');
    *index = -1;
    if (space != NULL) {
        *index = (int)strtol(space + 1, NULL, 10);
        *space = '\0';
    }
    hf_copy(section, HF_FIELD, header);
}

static void hf_parse(FILE *file)
{
    char line[HF_FIELD + HF_VALUE + 16];
    char section[HF_FIELD] = "";
    int index = -1;
    hf_length = 0;
    while (fgets(line, sizeof line, file) != NULL && hf_length < HF_MAX_ENTRIES) {
        char *comment = strchr(line, '#');
        if (comment != NULL)
            *comment = '\0';
        char *text = hf_trim(line);
        size_t length = strlen(text);
        if (length == 0)
            continue;
        if (text[0] == '[' && text[length - 1] == ']') {
            text[length - 1] = '\0';
            hf_split_section(text + 1, section, &index);
            continue;
        }
        char *equals = strchr(text, '=');
        if (equals == NULL)
            continue;
        *equals = '\0';
        struct hf_entry *entry = &hf_entries[hf_length++];
        hf_copy(entry->section, HF_FIELD, section);
        entry->index = index;
        hf_copy(entry->key, HF_FIELD, hf_trim(text));
        hf_copy(entry->value, HF_VALUE, hf_trim(equals + 1));
    }
}

/* Read the machine file named by the environment variable `env`, if it changed. 0: there is a machine; -1: none. */
static int hf_load(const char *env)
{
    const char *path = getenv(env);
    struct stat now;
    int answer = -1;
    pthread_mutex_lock(&hf_mutex);
    if (path != NULL && stat(path, &now) == 0) {
        int changed = hf_length == 0 || now.st_ino != hf_seen.st_ino || now.st_size != hf_seen.st_size ||
                      now.st_mtim.tv_sec != hf_seen.st_mtim.tv_sec || now.st_mtim.tv_nsec != hf_seen.st_mtim.tv_nsec;
        FILE *file = changed ? fopen(path, "re") : NULL;
        if (file != NULL) {
            hf_parse(file);
            fclose(file);
            hf_seen = now;
        }
        answer = hf_length > 0 ? 0 : -1;
    }
    pthread_mutex_unlock(&hf_mutex);
    return answer;
}

/* The value of `key` in section `section` (`index` -1 for a section without a number), or NULL when it is not there. */
static const char *hf_get(const char *section, int index, const char *key)
{
    for (int i = 0; i < hf_length; i++) {
        const struct hf_entry *entry = &hf_entries[i];
        if (entry->index == index && strcmp(entry->key, key) == 0 && strcmp(entry->section, section) == 0)
            return entry->value;
    }
    return NULL;
}

/* As `hf_get`; a `[device 3]` without the key falls back to the section `[device]`, then to `otherwise`. */
static const char *hf_str(const char *section, int index, const char *key, const char *otherwise)
{
    const char *value = hf_get(section, index, key);
    if (value == NULL && index >= 0)
        value = hf_get(section, -1, key);
    return value != NULL ? value : otherwise;
}

static inline int64_t hf_int(const char *section, int index, const char *key, int64_t otherwise)
{
    const char *value = hf_str(section, index, key, NULL);
    return value != NULL ? (int64_t)strtoll(value, NULL, 0) : otherwise;
}

static inline uint64_t hf_u64(const char *section, int index, const char *key, uint64_t otherwise)
{
    const char *value = hf_str(section, index, key, NULL);
    return value != NULL ? (uint64_t)strtoull(value, NULL, 0) : otherwise;
}

/* How many numbered sections of this name there are: 1 + the highest number. */
static inline int hf_count(const char *section)
{
    int count = 0;
    for (int i = 0; i < hf_length; i++)
        if (hf_entries[i].index >= count && strcmp(hf_entries[i].section, section) == 0)
            count = hf_entries[i].index + 1;
    return count;
}

#endif
