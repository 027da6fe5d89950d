// The Go contender: grpc-go, database/sql and SQLite, on the same tables as ours.
package main

import (
	"database/sql"
	"flag"
	"log"
	"net"
	"os"
	"strings"

	_ "github.com/mattn/go-sqlite3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	pb "bookstore/v1"
)

// The same settings as ours. Writers that compete for SQLite's lock may wait longer.
const settings = "?_journal_mode=WAL&_synchronous=FULL&_foreign_keys=1&_busy_timeout=60000&_txlock=immediate"

func main() {
	listen := flag.String("listen", "", "where to serve, HOST:PORT")
	flag.Parse()
	_, path, found := strings.Cut(os.Getenv("BOOKSTORE_DATABASE_URL"), ":///")
	if !found {
		log.Fatal("BOOKSTORE_DATABASE_URL names no file of SQLite")
	}
	readers, writer := open(path), open(path)
	writer.SetMaxOpenConns(1)
	servicer, err := newServicer(readers, writer)
	if err != nil {
		log.Fatal(err)
	}
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		log.Fatal(err)
	}
	server := grpc.NewServer()
	pb.RegisterBookServiceServer(server, servicer)
	healthy := health.NewServer()
	healthy.SetServingStatus("", healthpb.HealthCheckResponse_SERVING)
	healthpb.RegisterHealthServer(server, healthy)
	log.Fatal(server.Serve(listener))
}

func open(path string) *sql.DB {
	pool, err := sql.Open("sqlite3", "file:"+path+settings)
	if err != nil {
		log.Fatal(err)
	}
	pool.SetMaxIdleConns(64) // the default, 2, would open a connection for most calls
	return pool
}
