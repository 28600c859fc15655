/* Talks over a Unix socket: "connect PATH" sends what comes in, and prints what comes back; "many PATH COUNT" holds
   so many connections open and says over each a byte that has to come back; "serve PATH MODE" is a server that sends
   back what it gets, to one client after the other and to several at once; "watch DIRECTORY NAME" says "watching", and
   "came" for each file of that name that is made there; "listen DIRECTORY COUNT" listens to so many sockets there,
   says "listening", and answers nobody. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <signal.h>
#include <sys/inotify.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

static void fail(const char *what) {
    printf("%s: %s\n", what, strerror(errno));
    exit(1);
}

static int dial(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int link = socket(AF_UNIX, SOCK_STREAM, 0);
    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    if (link < 0 || connect(link, (struct sockaddr *)&address, sizeof address) < 0) fail("connect");
    return link;
}

static void copy(int from, int to) {
    char buffer[65536];
    ssize_t count;
    while ((count = read(from, buffer, sizeof buffer)) > 0)
        for (ssize_t done = 0, now; done < count; done += now)
            if ((now = write(to, buffer + done, count - done)) < 0) fail("write");
    if (count < 0) fail("read");
}

static void watch(const char *directory, const char *name) {
    char buffer[65536] __attribute__((aligned(__alignof__(struct inotify_event))));
    int news = inotify_init();
    if (news < 0 || inotify_add_watch(news, directory, IN_CREATE | IN_MOVED_TO) < 0) fail("watch");
    setlinebuf(stdout);
    printf("watching\n");
    for (;;) {
        ssize_t count = read(news, buffer, sizeof buffer);
        if (count <= 0) fail("read");
        for (char *at = buffer; at < buffer + count;) {
            struct inotify_event *one = (struct inotify_event *)at;
            if (one->len && !strcmp(one->name, name)) printf("came\n");
            at += sizeof *one + one->len;
        }
    }
}

int main(int argc, char **argv) {
    if (argc == 3 && !strcmp(argv[1], "connect")) {
        int link = dial(argv[2]);
        if (fork() == 0) {
            copy(0, link);
            shutdown(link, SHUT_WR);
            _exit(0);
        }
        copy(link, 1);
        return 0;
    }
    if (argc == 4 && !strcmp(argv[1], "many")) {
        int count = atoi(argv[3]), links[1024];
        char byte;
        for (int i = 0; i < count; i++) {
            links[i] = dial(argv[2]);
            if (write(links[i], "x", 1) != 1) fail("write");
        }
        for (int i = 0; i < count; i++) {
            if (read(links[i], &byte, 1) != 1) fail("read");
            close(links[i]);
        }
        printf("all\n");
        return 0;
    }
    if (argc == 4 && !strcmp(argv[1], "listen")) {
        for (int i = 0, count = atoi(argv[3]); i < count; i++) {
            struct sockaddr_un address = {.sun_family = AF_UNIX};
            int listening = socket(AF_UNIX, SOCK_STREAM, 0);
            snprintf(address.sun_path, sizeof address.sun_path, "%s/%d.sock", argv[2], i);
            if (listening < 0 || bind(listening, (struct sockaddr *)&address, sizeof address) < 0) fail("bind");
            if (listen(listening, 16) < 0) fail("listen");
        }
        printf("listening\n");
        fflush(stdout);
        pause();
    }
    if (argc == 4 && !strcmp(argv[1], "watch")) watch(argv[2], argv[3]);
    if (argc == 4 && !strcmp(argv[1], "serve")) {
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        int listening = socket(AF_UNIX, SOCK_STREAM, 0);
        signal(SIGCHLD, SIG_IGN);
        unlink(argv[2]);
        strncpy(address.sun_path, argv[2], sizeof address.sun_path - 1);
        if (listening < 0 || bind(listening, (struct sockaddr *)&address, sizeof address) < 0) fail("bind");
        if (chmod(argv[2], strtol(argv[3], NULL, 8)) < 0) fail("chmod");
        if (listen(listening, 16) < 0) fail("listen");
        for (;;) {
            int link = accept(listening, NULL, NULL);
            if (link < 0) fail("accept");
            if (fork() == 0) {
                copy(link, link);
                _exit(0);
            }
            close(link);
        }
    }
    return 2;
}
