// Tells a kubelet of a CSI driver: the part of kubernetes-csi's node-driver-registrar that a kubelet sees.
package main

import (
	"context"
	"flag"
	"log"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

type registrar struct {
	registration.UnimplementedRegistrationServer
	name, endpoint string
}

func (r *registrar) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{
		Type:              registration.CSIPlugin,
		Name:              r.name,
		Endpoint:          r.endpoint,
		SupportedVersions: []string{"1.0.0"},
	}, nil
}

func (r *registrar) NotifyRegistrationStatus(
	_ context.Context, status *registration.RegistrationStatus,
) (*registration.RegistrationStatusResponse, error) {
	if !status.PluginRegistered {
		log.Fatalf("the kubelet did not take %s: %s", r.name, status.Error)
	}
	log.Printf("the kubelet has taken %s", r.name)
	return &registration.RegistrationStatusResponse{}, nil
}

func name(address string) string {
	connection, err := grpc.NewClient("unix://"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	defer connection.Close()
	for {
		within, cancel := context.WithTimeout(context.Background(), time.Second)
		said, err := csi.NewIdentityClient(connection).GetPluginInfo(within, &csi.GetPluginInfoRequest{})
		cancel()
		if err == nil {
			return said.GetName()
		}
		log.Printf("the driver at %s does not answer yet: %v", address, err)
		time.Sleep(200 * time.Millisecond)
	}
}

func main() {
	address := flag.String("csi-address", "/csi/csi.sock", "the driver's socket")
	endpoint := flag.String("kubelet-registration-path", "", "the driver's socket as the kubelet sees it")
	directory := flag.String("plugin-registration-path", "/registration", "where the kubelet looks")
	flag.String("v", "", "as the original's")
	flag.Parse()
	driver := name(*address)
	socket := filepath.Join(*directory, driver+"-reg.sock")
	if err := os.Remove(socket); err != nil && !os.IsNotExist(err) {
		log.Fatal(err)
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		log.Fatal(err)
	}
	server := grpc.NewServer()
	registration.RegisterRegistrationServer(server, &registrar{name: driver, endpoint: *endpoint})
	log.Fatal(server.Serve(listener))
}
