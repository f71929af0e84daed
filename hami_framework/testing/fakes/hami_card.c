/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libhami_card.so: what a card says, as JSON, for `hami_framework.testing.card`. The only reader of its layout outside the
 * fakes, and of the same header, so that the layout is written once.
 */
#include "hami_card_time.h"

#include <stdarg.h>

struct text {
    char *at;
    size_t size, length;
};

static void __attribute__((format(printf, 2, 3))) say(struct text *text, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    size_t room = text->length < text->size ? text->size - text->length : 0;
    int length = vsnprintf(room > 0 ? text->at + text->length : NULL, room, format, arguments);
    va_end(arguments);
    text->length += length > 0 ? (size_t)length : 0;
}

static void say_string(struct text *text, const char *string)
{
    say(text, "\"");
    for (; *string != '\0'; string++)
        say(text, (unsigned char)*string < 0x20 || *string == '"' || *string == '\\' ? "\\u%04x" : "%c", (unsigned char)*string);
    say(text, "\"");
}

static void say_containers(struct text *text, const struct card *card, const struct card_device *device)
{
    bool first = true;
    for (int i = 0; i < CARD_CONTAINERS; i++) {
        const struct card_container *container = &device->containers[i];
        if (container->high_water == 0 && container->busy_ns == 0)
            continue;
        say(text, "%s", first ? "" : ",");
        say_string(text, card->containers[i]);
        say(text, ":{\"used\":%llu,\"high_water\":%llu,\"busy_ns\":%llu}", (unsigned long long)container->used, (unsigned long long)container->high_water,
            (unsigned long long)container->busy_ns);
        first = false;
    }
}

static void say_processes(struct text *text, const struct card *card, int index)
{
    static const char *const kinds[CARD_KINDS] = {"linear", "pool", "handle", "array", "managed", "context", "graph", "other"};
    const struct card_device *device = &card->devices[index];
    bool first = true;
    for (int i = 0; i < CARD_PROCESSES; i++) {
        const struct card_process *process = &card->processes[i];
        if (process->pid == 0 || (card_held(device, i) == 0 && device->last_span[i] == 0))
            continue;
        say(text, "%s{\"pid\":%lld,\"host_pid\":%lld,\"container\":", first ? "" : ",", (long long)process->pid, (long long)process->host_pid);
        say_string(text, card->containers[process->container]);
        say(text, ",\"used\":%llu,\"utilization\":%u,\"kinds\":{", (unsigned long long)card_held(device, i), card_percent(card, index, i));
        for (int kind = 0; kind < CARD_KINDS; kind++)
            say(text, "%s\"%s\":%llu", kind == 0 ? "" : ",", kinds[kind], (unsigned long long)device->bytes[i][kind]);
        say(text, "}}");
        first = false;
    }
}

static void say_device(struct text *text, const struct card *card, int index)
{
    const struct card_device *device = &card->devices[index];
    say(text, "{\"capacity\":%llu,\"used\":%llu,\"high_water\":%llu,\"refused\":%llu,\"busy_ns\":%llu,\"kernels\":%llu,\"utilization\":%u,\"containers\":{",
        (unsigned long long)device->capacity, (unsigned long long)device->used, (unsigned long long)device->high_water, (unsigned long long)device->refused,
        (unsigned long long)device->busy_ns, (unsigned long long)device->kernels, card_percent(card, index, -1));
    say_containers(text, card, device);
    say(text, "},\"processes\":[");
    say_processes(text, card, index);
    say(text, "]}");
}

/* The report on the card at `path` in `buffer`; the length it needs (more than `size`: ask again), or -1: no card there. */
HF_EXPORT long card_report(const char *path, char *buffer, size_t size);
HF_EXPORT long card_report(const char *path, char *buffer, size_t size)
{
    struct text text = {.at = buffer, .size = size};
    struct card *before = card_shared, *card = access(path, R_OK | W_OK) == 0 ? card_map(path) : NULL;
    if (card == NULL)
        return -1;
    card_shared = card;
    card_lock();
    card_sweep(card);
    say(&text, "{\"swept\":%llu,\"devices\":[", (unsigned long long)card->swept);
    for (int i = 0; i < CARD_DEVICES; i++) {
        say(&text, "%s", i == 0 ? "" : ",");
        say_device(&text, card, i);
    }
    say(&text, "]}");
    card_unlock(card);
    card_shared = before;
    munmap(card, sizeof *card);
    return (long)text.length;
}
