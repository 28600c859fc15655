// Asks Calico's node agent, at the socket that its driver has put into the pod, who it takes the pod for.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/projectcalico/calico/pod2daemon/protos/udsver_v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

func main() {
	connection, err := grpc.Dial("unix://"+os.Args[1], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	defer connection.Close()
	within, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	said, err := udsver_v1.NewVerifyClient(connection).Check(within, &udsver_v1.Request{})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(said.GetStatus().GetMessage())
}
