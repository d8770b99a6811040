/* One GET over a plain socket: look HOST PORT. */
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int main(int argc, char **argv) {
  struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found;
  static const char request[] = "GET / HTTP/1.0\r\n\r\n";
  char answer[4096];
  size_t length = 0;
  ssize_t got;
  int status, fd;

  if (argc != 3) return 2;
  status = getaddrinfo(argv[1], argv[2], &hints, &found);
  if (status != 0) return fprintf(stderr, "%s\n", gai_strerror(status)), 1;
  fd = socket(found->ai_family, found->ai_socktype, 0);
  if (fd < 0 || connect(fd, found->ai_addr, found->ai_addrlen) != 0) return perror("connect"), 1;
  if (write(fd, request, sizeof request - 1) < 0) return perror("write"), 1;
  while (length < sizeof answer - 1 && (got = read(fd, answer + length, sizeof answer - 1 - length)) > 0)
    length += (size_t)got;
  answer[length] = 0;
  char *body = strstr(answer, "\r\n\r\n");
  return body ? puts(body + 4) < 0 : 1;
}
