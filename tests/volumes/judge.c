/* What a program asks of a file system, tried in one directory: one line "name<TAB>ok" or "name<TAB>why not"
 * for each.
 *
 *   judge try DIRECTORY               every trial below, in a directory of its own
 *   judge block DEVICE                what is asked of a block device; its last MiB is overwritten
 *   judge watch DIRECTORY N SECONDS   the first N things that inotify tells of the directory
 *   judge listen SOCKET | connect SOCKET
 *
 * Static, and of the C library alone, so that it runs in any image under any runtime.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#define RENAME_NOREPLACE_FLAG 1
#define RENAME_EXCHANGE_FLAG 2
#define WRONG (-1) /* it was done, but not as it should be */

/* Return the error unless the call succeeds. */
#define DO(call) do { if ((call) < 0) return errno ? errno : WRONG; } while (0)
/* Return WRONG unless the statement holds. */
#define SEE(statement) do { if (!(statement)) return WRONG; } while (0)
/* Return WRONG unless the call fails with that error. */
#define REFUSES(call, error) do { if ((call) >= 0 || errno != (error)) return WRONG; } while (0)

static int fresh(const char *name) { return open(name, O_RDWR | O_CREAT | O_TRUNC, 0644); }

/* What a child says of a statement: 0, or the error. */
static int child(int (*body)(const char *), const char *name) {
    int status;
    pid_t pid = fork();
    if (pid == 0) {
        int result = body(name);
        _exit(result < 0 ? 255 : result);
    }
    if (waitpid(pid, &status, 0) < 0 || !WIFEXITED(status)) return WRONG;
    return WEXITSTATUS(status) == 255 ? WRONG : WEXITSTATUS(status);
}

static int address(struct sockaddr_un *to, const char *name) {
    memset(to, 0, sizeof *to);
    to->sun_family = AF_UNIX;
    if (strlen(name) >= sizeof to->sun_path) { errno = ENAMETOOLONG; return -1; }
    strcpy(to->sun_path, name);
    return 0;
}

static int unix_socket(void) {
    struct sockaddr_un at;
    char byte = 'x';
    int server, client, peer;
    DO(address(&at, "socket"));
    DO(server = socket(AF_UNIX, SOCK_STREAM, 0));
    DO(bind(server, (struct sockaddr *)&at, sizeof at));
    DO(listen(server, 1));
    DO(client = socket(AF_UNIX, SOCK_STREAM, 0));
    DO(connect(client, (struct sockaddr *)&at, sizeof at));
    DO(peer = accept(server, 0, 0));
    DO(write(client, &byte, 1));
    byte = 0;
    DO(read(peer, &byte, 1));
    SEE(byte == 'x');
    return 0;
}

static int fifo(void) {
    char byte = 0;
    int end;
    DO(mkfifo("fifo", 0600));
    DO(end = open("fifo", O_RDWR | O_NONBLOCK));
    DO(write(end, "y", 1));
    DO(read(end, &byte, 1));
    SEE(byte == 'y');
    return 0;
}

static int inotify(void) {
    char news[4096];
    int watch;
    struct pollfd ready;
    DO(watch = inotify_init1(IN_CLOEXEC));
    DO(inotify_add_watch(watch, ".", IN_CREATE | IN_MOVED_TO | IN_DELETE));
    DO(close(fresh("told")));
    ready = (struct pollfd){.fd = watch, .events = POLLIN};
    SEE(poll(&ready, 1, 2000) == 1);
    DO(read(watch, news, sizeof news));
    SEE(strcmp(((struct inotify_event *)news)->name, "told") == 0);
    return 0;
}

static int allocate(void) {
    struct stat found;
    int file;
    DO(file = fresh("allocated"));
    DO(fallocate(file, 0, 0, 1 << 20));
    DO(fstat(file, &found));
    SEE(found.st_size == 1 << 20 && found.st_blocks >= 2048);
    return 0;
}

static int punch(void) {
    struct stat found;
    static char data[1 << 18];
    int file;
    memset(data, 1, sizeof data);
    DO(file = fresh("punched"));
    SEE(write(file, data, sizeof data) == sizeof data);
    DO(fsync(file));
    DO(fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, sizeof data));
    DO(fstat(file, &found));
    SEE(found.st_size == sizeof data && found.st_blocks < 64);
    return 0;
}

static int acl(void) {
    /* Owner rw-, user 1234 r--, group r--, mask r--, others ---: linux/posix_acl_xattr.h. */
    struct { uint32_t version; struct { uint16_t tag, perm; uint32_t id; } entry[5]; } list = {
        2, {{1, 6, ~0u}, {2, 4, 1234}, {4, 4, ~0u}, {16, 4, ~0u}, {32, 0, ~0u}}};
    char back[128];
    DO(close(fresh("listed")));
    DO(setxattr("listed", "system.posix_acl_access", &list, sizeof list, 0));
    SEE(getxattr("listed", "system.posix_acl_access", back, sizeof back) == sizeof list);
    return 0;
}

static int attribute(const char *name, const void *value, size_t size) {
    char back[256];
    DO(close(fresh("attributed")));
    DO(setxattr("attributed", name, value, size, 0));
    SEE(getxattr("attributed", name, back, sizeof back) == (ssize_t)size && memcmp(back, value, size) == 0);
    return 0;
}

static int user_attribute(void) { return attribute("user.orlop", "value", 5); }

static int capability(void) {
    /* Version 2, effective: CAP_NET_BIND_SERVICE. */
    uint32_t set[5] = {0x02000001, 1 << 10, 0, 0, 0};
    return attribute("security.capability", set, sizeof set);
}

static int unnamed(void) {
    char path[64];
    int file;
    DO(file = open(".", O_TMPFILE | O_RDWR, 0600));
    SEE(write(file, "z", 1) == 1);
    snprintf(path, sizeof path, "/proc/self/fd/%d", file);
    DO(linkat(AT_FDCWD, path, AT_FDCWD, "named", AT_SYMLINK_FOLLOW));
    return 0;
}

static int unlinked(void) {
    struct stat found;
    int file;
    DO(file = fresh("gone"));
    DO(unlink("gone"));
    DO(ftruncate(file, 8192));
    SEE(pwrite(file, "q", 1, 8191) == 1);
    DO(fchmod(file, 0600));
    DO(fstat(file, &found));
    SEE(found.st_size == 8192 && found.st_nlink == 0);
    return 0;
}

static int renames(void) {
    char byte = 0;
    int file;
    DO(file = fresh("old"));
    SEE(write(file, "a", 1) == 1);
    DO(close(fresh("new")));
    DO(rename("old", "new"));
    SEE(pread(file, &byte, 1, 0) == 1 && byte == 'a');
    REFUSES(access("old", F_OK), ENOENT);
    DO(mkdir("from", 0755));
    DO(close(fresh("from/inside")));
    DO(rename("from", "to"));
    DO(access("to/inside", F_OK));
    REFUSES(rename("to", "to/inside/below"), errno == EINVAL ? EINVAL : ENOTDIR);
    return 0;
}

static int exchange(void) {
    struct stat first, second, found;
    DO(close(fresh("one")));
    DO(close(fresh("two")));
    DO(stat("one", &first));
    DO(stat("two", &second));
    DO(syscall(SYS_renameat2, AT_FDCWD, "one", AT_FDCWD, "two", RENAME_EXCHANGE_FLAG));
    DO(stat("two", &found));
    SEE(found.st_ino == first.st_ino && first.st_ino != second.st_ino);
    return 0;
}

static int keep(void) {
    DO(close(fresh("kept")));
    DO(close(fresh("other")));
    REFUSES(syscall(SYS_renameat2, AT_FDCWD, "other", AT_FDCWD, "kept", RENAME_NOREPLACE_FLAG), EEXIST);
    return 0;
}

static int sparse(void) {
    struct stat found;
    int file;
    DO(file = fresh("sparse"));
    SEE(pwrite(file, "s", 1, 64 << 20) == 1);
    DO(fsync(file));
    DO(fstat(file, &found));
    SEE(found.st_blocks < 1024);
    SEE(lseek(file, 0, SEEK_DATA) > 32 << 20 && lseek(file, 0, SEEK_HOLE) == 0);
    return 0;
}

static int lock_of(const char *name, int command) {
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    int file;
    DO(file = open(name, O_RDWR));
    if (fcntl(file, command, &lock) == 0) return 0;
    return errno;
}

static int tries_record(const char *name) { return lock_of(name, F_SETLK); }
static int tries_description(const char *name) { return lock_of(name, F_OFD_SETLK); }
static int tries_flock(const char *name) {
    int file;
    DO(file = open(name, O_RDWR));
    DO(flock(file, LOCK_EX | LOCK_NB));
    return 0;
}

static int excluded(int answer) { return answer == EAGAIN || answer == EACCES ? 0 : answer ? answer : WRONG; }

static int record_lock(void) {
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    int file;
    DO(file = fresh("record"));
    DO(fcntl(file, F_SETLK, &lock));
    if (excluded(child(tries_record, "record"))) return excluded(child(tries_record, "record"));
    lock.l_type = F_UNLCK;
    DO(fcntl(file, F_SETLK, &lock));
    return child(tries_record, "record");
}

static int description_lock(void) {
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    int file;
    DO(file = fresh("description"));
    DO(fcntl(file, F_OFD_SETLK, &lock));
    return excluded(child(tries_description, "description"));
}

static int whole_lock(void) {
    int file;
    DO(file = fresh("whole"));
    DO(flock(file, LOCK_EX));
    if (excluded(child(tries_flock, "whole"))) return excluded(child(tries_flock, "whole"));
    DO(flock(file, LOCK_UN));
    return child(tries_flock, "whole");
}

static int both_locks(void) {
    /* On a local file system the two kinds know nothing of each other. */
    int file;
    DO(file = fresh("both"));
    DO(flock(file, LOCK_EX));
    return child(tries_record, "both");
}

static int writes_page(const char *name) {
    char *page;
    int file;
    DO(file = open(name, O_RDWR));
    page = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (page == MAP_FAILED) return errno;
    page[7] = 'm';
    return 0;
}

static int shared_memory(void) {
    char *page, byte = 0;
    int file, result;
    DO(file = fresh("mapped"));
    DO(ftruncate(file, 4096));
    page = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (page == MAP_FAILED) return errno;
    result = child(writes_page, "mapped");
    if (result) return result;
    SEE(page[7] == 'm');
    page[8] = 'n';
    SEE(pread(file, &byte, 1, 8) == 1 && byte == 'n');
    return 0;
}

static int nanoseconds(void) {
    struct timespec times[2] = {{1000000001, 123456789}, {1000000002, 987654321}};
    struct stat found;
    DO(close(fresh("timed")));
    DO(utimensat(AT_FDCWD, "timed", times, 0));
    DO(stat("timed", &found));
    SEE(found.st_mtim.tv_sec == 1000000002 && found.st_mtim.tv_nsec == 987654321);
    SEE(found.st_atim.tv_nsec == 123456789);
    return 0;
}

static int owners(void) {
    struct stat found;
    DO(close(fresh("owned")));
    DO(chown("owned", 1234, 5678));
    DO(chmod("owned", 04751));
    DO(stat("owned", &found));
    SEE(found.st_uid == 1234 && found.st_gid == 5678 && (found.st_mode & 07777) == 04751);
    return 0;
}

static int inherited_group(void) {
    struct stat found;
    DO(mkdir("group", 0775));
    DO(chown("group", 0, 4321));
    DO(chmod("group", 02775));
    DO(close(fresh("group/file")));
    DO(stat("group/file", &found));
    SEE(found.st_gid == 4321);
    return 0;
}

static int hard_link(void) {
    struct stat found;
    DO(close(fresh("first")));
    DO(link("first", "second"));
    DO(stat("second", &found));
    SEE(found.st_nlink == 2);
    DO(unlink("first"));
    DO(access("second", F_OK));
    return 0;
}

static int symbolic_link(void) {
    char target[64] = "";
    DO(symlink("nowhere/at/all", "link"));
    SEE(readlink("link", target, sizeof target) == 14 && strncmp(target, "nowhere/at/all", 14) == 0);
    REFUSES(open("link", O_RDONLY | O_NOFOLLOW), ELOOP);
    REFUSES(open("link", O_RDONLY), ENOENT);
    return 0;
}

static int direct(void) {
    void *block;
    int file;
    SEE(posix_memalign(&block, 4096, 4096) == 0);
    memset(block, 'd', 4096);
    DO(file = open("direct", O_RDWR | O_CREAT | O_DIRECT, 0644));
    SEE(pwrite(file, block, 4096, 0) == 4096);
    SEE(pread(file, block, 4096, 0) == 4096);
    return 0;
}

static int copied(void) {
    int from, to;
    DO(from = fresh("source"));
    SEE(write(from, "copied", 6) == 6);
    DO(to = fresh("copy"));
    SEE(lseek(from, 0, SEEK_SET) == 0);
    SEE(syscall(SYS_copy_file_range, from, 0, to, 0, 6, 0) == 6);
    return 0;
}

static int sent(void) {
    off_t begin = 0;
    int from, to;
    DO(from = fresh("sent"));
    SEE(write(from, "sent", 4) == 4);
    DO(to = fresh("received"));
    SEE(sendfile(to, from, &begin, 4) == 4);
    return 0;
}

static int long_name(void) {
    char name[256];
    memset(name, 'l', 255);
    name[255] = 0;
    DO(close(fresh(name)));
    name[254] = 0;
    DO(access(".", W_OK));
    return 0;
}

static int removal(void) {
    DO(mkdir("full", 0755));
    DO(close(fresh("full/of")));
    REFUSES(rmdir("full"), ENOTEMPTY);
    DO(unlink("full/of"));
    DO(rmdir("full"));
    return 0;
}

static int many(void) {
    struct dirent *entry;
    char name[32];
    int count = 0;
    DIR *listing;
    DO(mkdir("many", 0755));
    for (int i = 0; i < 500; i++) {
        snprintf(name, sizeof name, "many/%03d", i);
        DO(close(fresh(name)));
    }
    listing = opendir("many");
    SEE(listing);
    /* Removed while it is read, as rm -r does. */
    while ((entry = readdir(listing))) {
        if (entry->d_name[0] == '.') continue;
        snprintf(name, sizeof name, "many/%.20s", entry->d_name);
        DO(unlink(name));
        count++;
    }
    SEE(count == 500);
    DO(rmdir("many"));
    return 0;
}

static int appended(void) {
    struct stat found;
    int first, second;
    DO(first = open("log", O_WRONLY | O_CREAT | O_APPEND, 0644));
    DO(second = open("log", O_WRONLY | O_APPEND));
    SEE(write(first, "aa", 2) == 2 && write(second, "bb", 2) == 2 && write(first, "cc", 2) == 2);
    DO(fstat(first, &found));
    SEE(found.st_size == 6);
    return 0;
}

static int runs(const char *name) {
    execl(name, name, (char *)0);
    return errno;
}

static int executed(void) {
    int from, to, result;
    struct stat found;
    off_t begin = 0;
    DO(from = open("/proc/self/exe", O_RDONLY));
    DO(fstat(from, &found));
    DO(to = open("program", O_WRONLY | O_CREAT | O_TRUNC, 0755));
    while (begin < found.st_size) DO(sendfile(to, from, &begin, found.st_size - begin));
    DO(close(to));
    result = child(runs, "./program");
    return result == 64 ? 0 : result ? result : WRONG; /* 64: it ran, and says how it is to be used */
}

static const struct { const char *name; int (*body)(void); } TRIALS[] = {
    {"Unix socket", unix_socket}, {"FIFO", fifo}, {"inotify", inotify}, {"fallocate", allocate},
    {"punch a hole", punch}, {"POSIX ACL", acl}, {"user xattr", user_attribute},
    {"security.capability", capability}, {"O_TMPFILE and linkat", unnamed},
    {"ftruncate of an unlinked file", unlinked}, {"rename", renames}, {"rename, exchange", exchange},
    {"rename, no replace", keep}, {"sparse files", sparse}, {"fcntl locks", record_lock},
    {"OFD locks", description_lock}, {"flock", whole_lock}, {"fcntl beside flock", both_locks},
    {"shared mmap", shared_memory}, {"nanosecond times", nanoseconds}, {"owner and mode", owners},
    {"set-group-id directory", inherited_group}, {"hard link", hard_link},
    {"symbolic link", symbolic_link}, {"O_DIRECT", direct}, {"copy_file_range", copied},
    {"sendfile", sent}, {"name of 255 bytes", long_name}, {"rmdir", removal},
    {"removal while listing", many}, {"O_APPEND", appended}, {"execve", executed},
};

static int device;
static uint64_t device_size;
static unsigned char *page;

static int block_sizes(void) {
    int logical, physical;
    DO(ioctl(device, BLKGETSIZE64, &device_size));
    DO(ioctl(device, BLKSSZGET, &logical));
    DO(ioctl(device, BLKPBSZGET, &physical));
    SEE(logical >= 512 && physical >= logical && device_size % logical == 0 && device_size >= 1 << 20);
    SEE((uint64_t)lseek(device, 0, SEEK_END) == device_size);
    return 0;
}

static off_t last_mib(void) { return device_size - (1 << 20); }

static int block_written(void) {
    memset(page, 'w', 4096);
    SEE(pwrite(device, page, 4096, last_mib()) == 4096);
    DO(fsync(device));
    memset(page, 0, 4096);
    SEE(pread(device, page, 4096, last_mib()) == 4096);
    SEE(page[0] == 'w' && page[4095] == 'w');
    return 0;
}

static int block_direct(void) {
    char name[64];
    int again;
    snprintf(name, sizeof name, "/proc/self/fd/%d", device);
    DO(again = open(name, O_RDWR | O_DIRECT | O_SYNC));
    memset(page, 'd', 4096);
    SEE(pwrite(again, page, 4096, last_mib()) == 4096);
    memset(page, 0, 4096);
    SEE(pread(again, page, 4096, last_mib()) == 4096 && page[17] == 'd');
    REFUSES(pread(again, page + 1, 4096, last_mib()), EINVAL);
    return close(again);
}

static int block_end(void) {
    REFUSES(pwrite(device, page, 4096, device_size), ENOSPC);
    SEE(pread(device, page, 4096, device_size) == 0);
    return 0;
}

static int block_zeroed(void) {
    uint64_t range[2] = {last_mib(), 1 << 20};
    DO(ioctl(device, BLKZEROOUT, range));
    memset(page, 'z', 4096);
    SEE(pread(device, page, 4096, last_mib()) == 4096 && page[0] == 0 && page[4095] == 0);
    return 0;
}

static int block_discarded(void) {
    uint64_t range[2] = {last_mib(), 1 << 20};
    DO(ioctl(device, BLKDISCARD, range));
    return 0;
}

static int block_mapped(void) {
    unsigned char *map = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, device, last_mib());
    SEE(map != MAP_FAILED);
    map[5] = 'm';
    DO(msync(map, 4096, MS_SYNC));
    SEE(pread(device, page, 4096, last_mib()) == 4096 && page[5] == 'm');
    return munmap(map, 4096);
}

static int block_claimed(void) {
    char name[64];
    int first;
    snprintf(name, sizeof name, "/proc/self/fd/%d", device);
    DO(first = open(name, O_RDWR | O_EXCL));
    REFUSES(open(name, O_RDWR | O_EXCL), EBUSY);
    return close(first);
}

static const struct { const char *name; int (*body)(void); } BLOCK_TRIALS[] = {
    {"sizes", block_sizes}, {"write, fsync, read", block_written}, {"O_DIRECT, O_SYNC", block_direct},
    {"past the end", block_end}, {"BLKZEROOUT", block_zeroed}, {"BLKDISCARD", block_discarded},
    {"shared mmap of a device", block_mapped}, {"O_EXCL", block_claimed},
};

static int try_block(const char *path) {
    if ((device = open(path, O_RDWR)) < 0 || posix_memalign((void **)&page, 4096, 8192) != 0) {
        printf("a device\t%s\n", strerrorname_np(errno));
        return 1;
    }
    for (unsigned i = 0; i < sizeof BLOCK_TRIALS / sizeof *BLOCK_TRIALS; i++) {
        errno = 0;
        int answer = BLOCK_TRIALS[i].body();
        printf("%s\t%s\n", BLOCK_TRIALS[i].name, answer == 0 ? "ok" : answer < 0 ? "wrong" : strerrorname_np(answer));
        fflush(stdout);
    }
    return 0;
}

static int try_all(const char *directory) {
    char own[4096];
    snprintf(own, sizeof own, "%s/judge.%d", directory, (int)getpid());
    if (mkdir(own, 0755) < 0 || chdir(own) < 0) {
        printf("a directory\t%s\n", strerror(errno));
        return 1;
    }
    umask(0);
    for (unsigned i = 0; i < sizeof TRIALS / sizeof *TRIALS; i++) {
        errno = 0;
        int answer = TRIALS[i].body();
        printf("%s\t%s\n", TRIALS[i].name, answer == 0 ? "ok" : answer < 0 ? "wrong" : strerrorname_np(answer));
        fflush(stdout);
    }
    return 0;
}

static int watch(const char *directory, int count, int seconds) {
    char news[65536];
    int descriptor = inotify_init1(IN_CLOEXEC);
    struct pollfd ready = {.fd = descriptor, .events = POLLIN};
    if (inotify_add_watch(descriptor, directory, IN_CREATE | IN_MOVED_TO | IN_DELETE | IN_CLOSE_WRITE) < 0) {
        printf("watch\t%s\n", strerror(errno));
        return 1;
    }
    printf("watching\n");
    fflush(stdout);
    while (count > 0) {
        if (poll(&ready, 1, seconds * 1000) != 1) {
            printf("nothing\n");
            return 2;
        }
        ssize_t size = read(descriptor, news, sizeof news);
        for (char *at = news; at < news + size && count > 0; count--) {
            struct inotify_event *one = (struct inotify_event *)at;
            const char *kind = one->mask & IN_CREATE     ? "create"
                               : one->mask & IN_MOVED_TO ? "moved"
                               : one->mask & IN_DELETE   ? "delete"
                                                         : "written";
            printf("%s\t%s\n", kind, one->len ? one->name : "");
            at += sizeof *one + one->len;
        }
        fflush(stdout);
    }
    return 0;
}

static int talk(const char *path, int server) {
    struct sockaddr_un at;
    char text[64] = "";
    int end = socket(AF_UNIX, SOCK_STREAM, 0);
    if (address(&at, path) < 0) goto failed;
    if (server) {
        if (bind(end, (struct sockaddr *)&at, sizeof at) < 0 || listen(end, 4) < 0) goto failed;
        printf("listening\n");
        fflush(stdout);
        if ((end = accept(end, 0, 0)) < 0) goto failed;
    } else if (connect(end, (struct sockaddr *)&at, sizeof at) < 0) {
        goto failed;
    }
    if (!server && write(end, "hello", 5) != 5) goto failed;
    if (read(end, text, sizeof text - 1) <= 0) goto failed;
    if (server && write(end, "welcome", 7) != 7) goto failed;
    printf("%s\n", text);
    return 0;
failed:
    printf("%s\n", strerrorname_np(errno));
    return 1;
}

int main(int count, char **words) {
    if (count == 3 && strcmp(words[1], "try") == 0) return try_all(words[2]);
    if (count == 3 && strcmp(words[1], "block") == 0) return try_block(words[2]);
    if (count == 5 && strcmp(words[1], "watch") == 0) return watch(words[2], atoi(words[3]), atoi(words[4]));
    if (count == 3 && strcmp(words[1], "listen") == 0) return talk(words[2], 1);
    if (count == 3 && strcmp(words[1], "connect") == 0) return talk(words[2], 0);
    return 64;
}
