// A server of ttrpc's own test service, or a client of it: the original, for Orlop's to talk with.
//
//	peer serve SOCKET    answers until it is killed
//	peer call SOCKET     calls each method and says "ok", or what went wrong
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"github.com/containerd/ttrpc"
	"github.com/containerd/ttrpc/integration/streaming"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
)

type service struct{}

func (service) Echo(ctx context.Context, e *streaming.EchoPayload) (*streaming.EchoPayload, error) {
	switch e.Msg {
	case "fail":
		return nil, status.Error(codes.FailedPrecondition, "it was asked to fail")
	case "sleep":
		<-ctx.Done()
		return nil, ctx.Err()
	case "metadata":
		value, _ := ttrpc.GetMetadataValue(ctx, "key")
		return &streaming.EchoPayload{Msg: value}, nil
	}
	return &streaming.EchoPayload{Seq: e.Seq + 1, Msg: e.Msg}, nil
}

func (service) EchoStream(_ context.Context, s streaming.TTRPCStreaming_EchoStreamServer) error {
	for {
		e, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if e.Msg == "fail" {
			return status.Error(codes.Aborted, "the stream was asked to fail")
		}
		e.Seq++
		if err := s.Send(e); err != nil {
			return err
		}
	}
}

func (service) SumStream(_ context.Context, s streaming.TTRPCStreaming_SumStreamServer) (*streaming.Sum, error) {
	sum := &streaming.Sum{}
	for {
		part, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return sum, nil
		}
		if err != nil {
			return nil, err
		}
		sum.Sum += part.Add
		sum.Num++
	}
}

func (service) DivideStream(_ context.Context, sum *streaming.Sum, s streaming.TTRPCStreaming_DivideStreamServer) error {
	for i := int32(0); i < sum.Num; i++ {
		if err := s.Send(&streaming.Part{Add: sum.Sum / sum.Num}); err != nil {
			return err
		}
	}
	return nil
}

func (service) EchoNull(_ context.Context, s streaming.TTRPCStreaming_EchoNullServer) (*emptypb.Empty, error) {
	for {
		if _, err := s.Recv(); err != nil {
			if errors.Is(err, io.EOF) {
				return &emptypb.Empty{}, nil
			}
			return nil, err
		}
	}
}

func (service) EchoNullStream(_ context.Context, s streaming.TTRPCStreaming_EchoNullStreamServer) error {
	for {
		if _, err := s.Recv(); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if err := s.Send(&emptypb.Empty{}); err != nil {
			return err
		}
	}
}

func (service) EmptyPayloadStream(_ context.Context, _ *emptypb.Empty, s streaming.TTRPCStreaming_EmptyPayloadStreamServer) error {
	return s.Send(&streaming.EchoPayload{})
}

func serve(path string) error {
	listener, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	server, err := ttrpc.NewServer()
	if err != nil {
		return err
	}
	streaming.RegisterTTRPCStreamingService(server, service{})
	return server.Serve(context.Background(), listener)
}

func call(path string) error {
	conn, err := net.Dial("unix", path)
	if err != nil {
		return err
	}
	client := streaming.NewTTRPCStreamingClient(ttrpc.NewClient(conn))
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	large := strings.Repeat("x", 3<<20)
	for _, text := range []string{"", "hello", large} {
		reply, err := client.Echo(ctx, &streaming.EchoPayload{Seq: 1, Msg: text})
		if err != nil || reply.Seq != 2 || reply.Msg != text {
			return fmt.Errorf("echo of %d bytes: %v", len(text), err)
		}
	}
	if _, err := client.Echo(ctx, &streaming.EchoPayload{Msg: "fail"}); status.Code(err) != codes.FailedPrecondition {
		return fmt.Errorf("a failure: %v", err)
	}
	short, stop := context.WithTimeout(ctx, 200*time.Millisecond)
	defer stop()
	if _, err := client.Echo(short, &streaming.EchoPayload{Msg: "sleep"}); !errors.Is(err, context.DeadlineExceeded) &&
		status.Code(err) != codes.DeadlineExceeded {
		return fmt.Errorf("a timeout: %v", err)
	}
	with := ttrpc.WithMetadata(ctx, ttrpc.MD{"key": []string{"value"}})
	if reply, err := client.Echo(with, &streaming.EchoPayload{}); err != nil || reply.Seq != 1 {
		return fmt.Errorf("metadata: %v %v", reply, err)
	}

	echo, err := client.EchoStream(ctx)
	if err != nil {
		return err
	}
	for i := int64(0); i < 500; i++ {
		if err := echo.Send(&streaming.EchoPayload{Seq: uint32(i), Msg: "m"}); err != nil {
			return err
		}
		if reply, err := echo.Recv(); err != nil || reply.Seq != uint32(i+1) {
			return fmt.Errorf("stream: %v %v", reply, err)
		}
	}
	if err := echo.CloseSend(); err != nil {
		return err
	}
	if _, err := echo.Recv(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("the end of a stream: %v", err)
	}

	sum, err := client.SumStream(ctx)
	if err != nil {
		return err
	}
	for i := int32(1); i <= 10; i++ {
		if err := sum.Send(&streaming.Part{Add: i}); err != nil {
			return err
		}
	}
	total, err := sum.CloseAndRecv()
	if err != nil || total.Sum != 55 || total.Num != 10 {
		return fmt.Errorf("sum: %v %v", total, err)
	}

	parts, err := client.DivideStream(ctx, total)
	if err != nil {
		return err
	}
	count := 0
	for {
		part, err := parts.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil || part.Add != 5 {
			return fmt.Errorf("divide: %v %v", part, err)
		}
		count++
	}
	if count != 10 {
		return fmt.Errorf("divide: %d parts", count)
	}

	failing, err := client.EchoStream(ctx)
	if err != nil {
		return err
	}
	if err := failing.Send(&streaming.EchoPayload{Msg: "fail"}); err != nil {
		return err
	}
	if _, err := failing.Recv(); status.Code(err) != codes.FailedPrecondition {
		return fmt.Errorf("a stream's failure: %v", err)
	}
	fmt.Println("ok")
	return nil
}

func main() {
	run := map[string]func(string) error{"serve": serve, "call": call}[os.Args[1]]
	if err := run(os.Args[2]); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}
