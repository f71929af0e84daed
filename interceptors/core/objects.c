/* SPDX-License-Identifier: Apache-2.0 */
/*
 * objects.c: symbols and names of loaded objects, read from their dynamic sections. The real dlsym is found this way, because
 * asking dlsym for it would be asking ourselves, and every other way to ask (private entry points of the C library, version
 * tags tried one after the other) has broken with some release of it.
 *
 * dl_iterate_phdr allocates nothing and its lock is recursive, so that this works inside malloc and inside constructors.
 */
#include <elf.h>
#include <link.h>
#include <string.h>

#include "objects.h"

#define VERSION_HIDDEN 0x8000u

/* What a dynamic section says, with all pointers made absolute. */
struct object {
    ElfW(Addr) base;
    const ElfW(Sym) *symbols;
    const char *strings;
    const ElfW(Versym) *versions;
    const uint32_t *gnu_hash;
    const uint32_t *hash;
    const char *soname;
};

/* The C library relocates these entries in place on most machines and leaves them relative on others (and in the vDSO). */
static const void *absolute(ElfW(Addr) base, ElfW(Addr) value) {
    return (const void *)(value < base ? base + value : value);
}

static const ElfW(Dyn) *dynamic_section(const struct dl_phdr_info *info) {
    for (size_t i = 0; i < info->dlpi_phnum; i++) {
        if (info->dlpi_phdr[i].p_type == PT_DYNAMIC) {
            return (const ElfW(Dyn) *)(info->dlpi_addr + info->dlpi_phdr[i].p_vaddr);
        }
    }
    return NULL;
}

static bool read_object(const struct dl_phdr_info *info, struct object *object) {
    *object = (struct object){.base = info->dlpi_addr};
    ElfW(Addr) soname = 0;
    bool named = false;
    for (const ElfW(Dyn) *entry = dynamic_section(info); entry != NULL && entry->d_tag != DT_NULL; entry++) {
        const void *pointer = absolute(info->dlpi_addr, entry->d_un.d_ptr);
        switch (entry->d_tag) {
        case DT_SYMTAB: object->symbols = pointer; break;
        case DT_STRTAB: object->strings = pointer; break;
        case DT_VERSYM: object->versions = pointer; break;
        case DT_GNU_HASH: object->gnu_hash = pointer; break;
        case DT_HASH: object->hash = pointer; break;
        case DT_SONAME: soname = entry->d_un.d_val; named = true; break;
        default: break;
        }
    }
    if (object->symbols == NULL || object->strings == NULL) {
        return false;
    }
    object->soname = named ? object->strings + soname : NULL;
    return true;
}

/*
 * strcmp by our own hand: a sanitizer's runtime looks its string functions up through our dlsym before its own strcmp, which
 * ours would be bound to, can be called.
 */
static bool same(const char *one, const char *other) {
    while (*one != 0 && *one == *other) {
        one++;
        other++;
    }
    return *one == *other;
}

static bool is_it(const struct object *object, uint32_t index, const char *name) {
    const ElfW(Sym) *symbol = &object->symbols[index];
    return symbol->st_shndx != SHN_UNDEF && (symbol->st_info & 15) == STT_FUNC && same(object->strings + symbol->st_name, name) &&
           (object->versions == NULL || (object->versions[index] & VERSION_HIDDEN) == 0);
}

static uint32_t gnu_hash_of(const char *name) {
    uint32_t hash = 5381;
    for (const unsigned char *letter = (const unsigned char *)name; *letter != 0; letter++) {
        hash = hash * 33 + *letter;
    }
    return hash;
}

static const ElfW(Sym) *by_gnu_hash(const struct object *object, const char *name) {
    const uint32_t *table = object->gnu_hash;
    uint32_t buckets = table[0];
    uint32_t first = table[1];
    const uint32_t *bucket = table + 4 + table[2] * (sizeof(ElfW(Addr)) / sizeof(uint32_t));
    const uint32_t *chain = bucket + buckets;
    uint32_t hash = gnu_hash_of(name);
    if (buckets == 0) {
        return NULL;
    }
    for (uint32_t i = bucket[hash % buckets]; i >= first && i != 0; i++) {
        uint32_t link = chain[i - first];
        if ((link | 1) == (hash | 1) && is_it(object, i, name)) {
            return &object->symbols[i];
        }
        if ((link & 1) != 0) {
            return NULL;
        }
    }
    return NULL;
}

static const ElfW(Sym) *by_hash(const struct object *object, const char *name) {
    uint32_t hash = 0;
    for (const unsigned char *letter = (const unsigned char *)name; *letter != 0; letter++) {
        hash = (hash << 4) + *letter;
        hash ^= (hash >> 24) & 0xf0;
        hash &= 0x0fffffff;
    }
    uint32_t buckets = object->hash[0];
    const uint32_t *bucket = object->hash + 2;
    const uint32_t *chain = bucket + buckets;
    for (uint32_t i = buckets == 0 ? 0 : bucket[hash % buckets]; i != 0; i = chain[i]) {
        if (is_it(object, i, name)) {
            return &object->symbols[i];
        }
    }
    return NULL;
}

struct function_search {
    const char *const *sonames;
    const char *name;
    void *found;
};

static int search_object(struct dl_phdr_info *info, size_t size, void *context) {
    (void)size;
    struct function_search *search = context;
    struct object object;
    if (!read_object(info, &object) || object.soname == NULL) {
        return 0;
    }
    for (const char *const *soname = search->sonames; *soname != NULL; soname++) {
        if (same(object.soname, *soname)) {
            const ElfW(Sym) *symbol = object.gnu_hash != NULL ? by_gnu_hash(&object, search->name)
                                      : object.hash != NULL   ? by_hash(&object, search->name)
                                                              : NULL;
            if (symbol != NULL) {
                search->found = (void *)(object.base + symbol->st_value);
                return 1;
            }
        }
    }
    return 0;
}

void *hami_elf_function(const char *const *sonames, const char *name) {
    struct function_search search = {sonames, name, NULL};
    dl_iterate_phdr(search_object, &search);
    return search.found;
}

static size_t stem(const char *name) {
    const char *end = strstr(name, ".so");
    return end == NULL ? strlen(name) : (size_t)(end - name) + 3;
}

static bool same_library(const struct dl_phdr_info *info, const char *soname) {
    struct object object;
    if (!read_object(info, &object)) {
        return false;
    }
    const char *slash = info->dlpi_name == NULL ? NULL : strrchr(info->dlpi_name, '/');
    const char *name = object.soname != NULL ? object.soname : slash != NULL ? slash + 1 : "";
    return stem(name) == stem(soname) && strncmp(name, soname, stem(soname)) == 0;
}

struct library_search {
    const char *soname;
    ElfW(Addr) address;
    char *path;
    size_t length;
    bool found;
};

static int search_owner(struct dl_phdr_info *info, size_t size, void *context) {
    (void)size;
    struct library_search *search = context;
    for (size_t i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *segment = &info->dlpi_phdr[i];
        ElfW(Addr) begin = info->dlpi_addr + segment->p_vaddr;
        if (segment->p_type == PT_LOAD && search->address >= begin && search->address - begin < segment->p_memsz) {
            search->found = same_library(info, search->soname);
            return 1;
        }
    }
    return 0;
}

bool hami_object_is(const void *address, const char *soname) {
    struct library_search search = {.soname = soname, .address = (ElfW(Addr))address};
    dl_iterate_phdr(search_owner, &search);
    return search.found;
}

static int search_library(struct dl_phdr_info *info, size_t size, void *context) {
    (void)size;
    struct library_search *search = context;
    if (info->dlpi_name == NULL || info->dlpi_name[0] == 0 || strlen(info->dlpi_name) >= search->length || !same_library(info, search->soname)) {
        return 0;
    }
    strcpy(search->path, info->dlpi_name);
    search->found = true;
    return 1;
}

bool hami_object_loaded(const char *soname, char *path, size_t length) {
    struct library_search search = {.soname = soname, .path = path, .length = length};
    dl_iterate_phdr(search_library, &search);
    return search.found;
}
