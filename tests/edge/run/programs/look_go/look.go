// One GET: look HOST PORT dial|http.
package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"
)

func main() {
	host, port, way := os.Args[1], os.Args[2], os.Args[3]
	where := net.JoinHostPort(host, port)
	answer, err := look(where, way)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(answer)
}

func look(where, way string) (string, error) {
	if way == "http" {
		client := http.Client{Timeout: 10 * time.Second}
		answer, err := client.Get("http://" + where + "/")
		if err != nil {
			return "", err
		}
		body, err := io.ReadAll(answer.Body)
		return string(body), err
	}
	connection, err := net.DialTimeout("tcp", where, 10*time.Second)
	if err != nil {
		return "", err
	}
	fmt.Fprintf(connection, "GET / HTTP/1.0\r\n\r\n")
	all, err := io.ReadAll(connection)
	_, body, _ := strings.Cut(string(all), "\r\n\r\n")
	return body, err
}
