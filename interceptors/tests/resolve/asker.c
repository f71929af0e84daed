/* SPDX-License-Identifier: Apache-2.0 */
/*
 * asker.c: looks the made-up driver's functions up in the way named by the first argument (each may follow another), and
 * prints what calling them answers. Compiled as a program, as a plugin, and with references to either version of dlsym.
 */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#ifdef DLSYM_VERSION
__asm__(".symver dlsym, dlsym@" DLSYM_VERSION);
#endif

typedef int (*function)(int);

static int call(void *found) {
    return found == NULL ? -1 : ((function)found)(0);
}

static void *driver(void) {
    void *handle = dlopen("libtoyacc.so.1", RTLD_NOW | RTLD_LOCAL);
    if (handle == NULL) {
        printf("dlopen: %s\n", dlerror());
        exit(7);
    }
    return handle;
}

int asker(const char *way) {
    if (strcmp(way, "handle") == 0) {
        void *handle = driver();
        int one = call(dlsym(handle, "toyAlloc_v2"));
        int two = call(dlsym(handle, "toyAlloc_v2"));
        printf("%d %d %d %d\n", one, two, call(dlsym(handle, "toyPlain")), call(dlsym(handle, "toyGone")));
    } else if (strcmp(way, "self") == 0) {
        printf("%d\n", call(dlsym(driver(), "toySelf")));
    } else if (strcmp(way, "default") == 0) {
        dlerror();
        int one = call(dlsym(RTLD_DEFAULT, "toyFree"));
        int two = call(dlsym(RTLD_DEFAULT, "toyFree"));
        int gone = call(dlsym(RTLD_DEFAULT, "toyGone"));
        printf("%d %d %d %s\n", one, two, gone, dlerror() != NULL ? "dlerror" : "no dlerror");
    } else if (strcmp(way, "next") == 0) {
        int one = call(dlsym(RTLD_NEXT, "toyFree"));
        int two = call(dlsym(RTLD_NEXT, "toyFree"));
        printf("%d %d %d\n", one, two, call(dlsym(RTLD_NEXT, "toyGone")));
    } else if (strcmp(way, "program") == 0) {
        printf("%d\n", call(dlsym(dlopen(NULL, RTLD_NOW), "toyAlloc")));
    } else if (strcmp(way, "versioned") == 0) {
        printf("%d %d\n", call(dlvsym(driver(), "toyFree", "TOY_1")), call(dlvsym(RTLD_DEFAULT, "toyFree", "TOY_1")));
    } else if (strcmp(way, "wrong-version") == 0) {
        printf("%d\n", call(dlvsym(driver(), "toyFree", "TOY_9")));
    } else if (strcmp(way, "resolver") == 0) {
        void *(*get)(const char *, int) = (void *(*)(const char *, int))dlsym(driver(), "toyGetProc");
        printf("%d %d %d %d %d %d\n", call(get("toyAlloc", 1)), call(get("toyAlloc", 2)), call(get("toyFree", 1)), call(get("toyLaunch", 1)),
               call(get("toySecret", 1)), call(get("toyNothing", 1)));
    } else if (strcmp(way, "unknown") == 0) {
        unsigned long (*unknown)(int) = (unsigned long (*)(int))dlsym(RTLD_DEFAULT, "toy_test_unknown");
        if (unknown == NULL) {
            printf("%d none\n", call(dlsym(driver(), "toySecret")));
            return 0;
        }
        dlsym(driver(), "toySecret"); /* counted before there is a slot to count in */
        unknown(1);
        int secret = call(dlsym(driver(), "toySecret"));
        dlsym(driver(), "toyNowhere");
        dlsym(driver(), "toyPlain");
        printf("%d %lu\n", secret, unknown(0));
    } else if (strcmp(way, "unrelated") == 0) {
        void *here = dlsym(RTLD_NEXT, "malloc");
        void *plain = dlvsym(RTLD_DEFAULT, "fopen", "GLIBC_2.2.5");
        dlerror();
        void *nothing = dlsym(RTLD_DEFAULT, "no_such_function_anywhere");
        const char *error = dlerror();
        Dl_info where = {0};
        dladdr(here, &where);
        printf("%s %s %d %s\n", strstr(where.dli_fname, "libc.so") != NULL ? "libc" : where.dli_fname, plain != NULL ? "found" : "none", nothing != NULL,
               error != NULL ? "dlerror" : "no dlerror");
    } else if (strcmp(way, "close") == 0) {
        for (int i = 0; i < 3; i++) {
            void *handle = driver();
            int answer = call(dlsym(handle, "toyAlloc"));
            dlclose(handle);
            printf("%d ", answer);
        }
        printf("%d\n", call(dlsym(driver(), "toyAlloc")));
    } else if (strcmp(way, "fork") == 0) {
        fflush(stdout);
        pid_t child = fork();
        if (child == 0) {
            _exit(call(dlsym(driver(), "toyFree")) == 1003 ? 0 : 1);
        }
        int status = 1;
        waitpid(child, &status, 0);
        printf("%d\n", status);
    } else {
        return 64;
    }
    return 0;
}

int main(int count, char **ways) {
    int status = 0;
    for (int i = 1; i < count && status == 0; i++) {
        void *plugin = strncmp(ways[i], "plugin:", 7) == 0 || strncmp(ways[i], "deep:", 5) == 0
                           ? dlopen(getenv("TOY_PLUGIN"), RTLD_NOW | RTLD_LOCAL | (ways[i][0] == 'd' ? RTLD_DEEPBIND : 0))
                           : NULL;
        const char *way = strchr(ways[i], ':');
        int (*ask)(const char *) = plugin == NULL ? asker : (int (*)(const char *))dlsym(plugin, "asker");
        status = ask(way == NULL ? ways[i] : way + 1);
    }
    return status;
}
