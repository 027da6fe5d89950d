package main

import (
	"context"
	"database/sql"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "bookstore/v1"
)

const (
	columns = "SELECT id, name, author, release_year, create_time, update_time FROM books "
	insert  = "INSERT INTO books (name, author, release_year, create_time, update_time, name_folded, author_folded) " +
		"VALUES (?, ?, ?, ?, ?, ?, ?)"
)

// The only filter that the loads use.
var authorFilter = regexp.MustCompile(`^author = "(.*)"$`)

// servicer has the measured operations, with prepared statements.
type servicer struct {
	pb.UnimplementedBookServiceServer
	writer                           *sql.DB
	get, list, listAuthor            *sql.Stmt
	getInTransaction, insert, rename *sql.Stmt
}

func newServicer(readers, writer *sql.DB) (*servicer, error) {
	s := &servicer{writer: writer}
	for _, each := range []struct {
		statement **sql.Stmt
		pool      *sql.DB
		query     string
	}{
		{&s.get, readers, columns + "WHERE id = ?"},
		{&s.list, readers, columns + "WHERE id > ? ORDER BY id LIMIT ?"},
		{&s.listAuthor, readers, columns + "WHERE author_head = ? AND author = ? AND id > ? ORDER BY id LIMIT ?"},
		{&s.getInTransaction, writer, columns + "WHERE id = ?"},
		{&s.insert, writer, insert},
		{&s.rename, writer, "UPDATE books SET name = ?, name_folded = ?, update_time = ? WHERE id = ?"},
	} {
		prepared, err := each.pool.Prepare(each.query)
		if err != nil {
			return nil, err
		}
		*each.statement = prepared
	}
	return s, nil
}

func (s *servicer) CreateBook(ctx context.Context, request *pb.CreateBookRequest) (*pb.Book, error) {
	books, err := s.create([]*pb.CreateBookRequest{request})
	if err != nil {
		return nil, err
	}
	return books[0], nil
}

func (s *servicer) GetBook(ctx context.Context, request *pb.GetBookRequest) (*pb.Book, error) {
	book, err := scan(s.get.QueryRowContext(ctx, request.Id))
	if err == sql.ErrNoRows {
		return nil, status.Error(codes.NotFound, "There is no such book.")
	}
	return book, err
}

func (s *servicer) ListBooks(ctx context.Context, request *pb.ListBooksRequest) (*pb.ListBooksResponse, error) {
	size := int(request.PageSize)
	if size == 0 {
		size = 50
	}
	after := 0
	if request.PageToken != "" {
		var err error
		if after, err = strconv.Atoi(request.PageToken); err != nil {
			return nil, status.Error(codes.InvalidArgument, "The page token is damaged.")
		}
	}
	rows, err := s.page(request.Filter, after, size+1)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	response := &pb.ListBooksResponse{Books: make([]*pb.Book, 0, size)}
	for rows.Next() {
		if len(response.Books) == size {
			response.NextPageToken = strconv.FormatInt(response.Books[size-1].Id, 10)
			break
		}
		book, err := scan(rows)
		if err != nil {
			return nil, err
		}
		response.Books = append(response.Books, book)
	}
	return response, rows.Err()
}

// page does not end with the call: the driver would start a goroutine for each row to be able to interrupt it.
func (s *servicer) page(filter string, after, limit int) (*sql.Rows, error) {
	if filter == "" {
		return s.list.Query(after, limit)
	}
	match := authorFilter.FindStringSubmatch(filter)
	if match == nil {
		return nil, status.Error(codes.Unimplemented, "The filter is not supported.")
	}
	return s.listAuthor.Query(match[1], match[1], after, limit)
}

func (s *servicer) UpdateBook(ctx context.Context, request *pb.UpdateBookRequest) (*pb.Book, error) {
	transaction, err := s.writer.BeginTx(ctx, nil)
	if err != nil {
		return nil, err
	}
	defer transaction.Rollback()
	book, err := scan(transaction.StmtContext(ctx, s.getInTransaction).QueryRowContext(ctx, request.Book.Id))
	if err == sql.ErrNoRows {
		return nil, status.Error(codes.NotFound, "There is no such book.")
	}
	if err != nil {
		return nil, err
	}
	name, now := request.Book.Name, time.Now().UnixMicro()
	statement := transaction.StmtContext(ctx, s.rename)
	if _, err := statement.ExecContext(ctx, name, strings.ToLower(name), now, book.Id); err != nil {
		return nil, err
	}
	if err := transaction.Commit(); err != nil {
		return nil, err
	}
	return message(book.Id, name, book.Author, *book.ReleaseYear, book.CreateTime.AsTime().UnixMicro(), now), nil
}

func (s *servicer) BatchGetBooks(ctx context.Context, request *pb.BatchGetBooksRequest) (*pb.BatchGetBooksResponse, error) {
	response := &pb.BatchGetBooksResponse{}
	for _, id := range request.Ids {
		book, err := s.GetBook(ctx, &pb.GetBookRequest{Id: id})
		if err != nil {
			return nil, err
		}
		response.Books = append(response.Books, book)
	}
	return response, nil
}

func (s *servicer) BatchCreateBooks(ctx context.Context, request *pb.BatchCreateBooksRequest) (*pb.BatchCreateBooksResponse, error) {
	books, err := s.create(request.Requests)
	return &pb.BatchCreateBooksResponse{Books: books}, err
}

// create does not end with the call either, for the same reason.
func (s *servicer) create(requests []*pb.CreateBookRequest) ([]*pb.Book, error) {
	transaction, err := s.writer.Begin()
	if err != nil {
		return nil, err
	}
	defer transaction.Rollback()
	now, statement := time.Now().UnixMicro(), transaction.Stmt(s.insert)
	books := make([]*pb.Book, 0, len(requests))
	for _, request := range requests {
		name, author, year := request.Book.Name, request.Book.Author, request.Book.GetReleaseYear()
		done, err := statement.Exec(name, author, year, now, now, strings.ToLower(name), strings.ToLower(author))
		if err != nil {
			return nil, err
		}
		id, err := done.LastInsertId()
		if err != nil {
			return nil, err
		}
		books = append(books, message(id, name, author, year, now, now))
	}
	return books, transaction.Commit()
}

type row interface{ Scan(...interface{}) error }

func scan(from row) (*pb.Book, error) {
	var (
		id, createTime, updateTime int64
		name, author               string
		year                       int32
	)
	if err := from.Scan(&id, &name, &author, &year, &createTime, &updateTime); err != nil {
		return nil, err
	}
	return message(id, name, author, year, createTime, updateTime), nil
}

func message(id int64, name, author string, year int32, createTime, updateTime int64) *pb.Book {
	return &pb.Book{
		Id:          id,
		Name:        name,
		Author:      author,
		ReleaseYear: &year,
		CreateTime:  timestamppb.New(time.UnixMicro(createTime)),
		UpdateTime:  timestamppb.New(time.UnixMicro(updateTime)),
		Etag:        fmt.Sprintf("%x-%x", id, updateTime),
	}
}
