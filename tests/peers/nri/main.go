// A plug-in of NRI, made with its own library, that does what a JSON document says and writes down what it hears.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
	"google.golang.org/protobuf/encoding/protojson"
)

type wishes struct {
	Log    string            `json:"log"`
	Adjust json.RawMessage   `json:"adjust"`
	Update []json.RawMessage `json:"update"`
	Stop   []json.RawMessage `json:"stop"`
	// Calls at which it hangs, dies or refuses.
	Hang string `json:"hang"`
	Die  string `json:"die"`
	Fail string `json:"fail"`
	// What it rejects as a judge of others; subscribed only when it is not empty.
	Reject string `json:"reject"`
	// Changes what it got in Synchronize or PostStartContainer of its own accord.
	Unasked json.RawMessage `json:"unasked"`
}

type plugin struct {
	stub stub.Stub
	want wishes
	file *os.File
}

func (p *plugin) note(event string, pod *api.PodSandbox, container *api.Container) error {
	line, _ := json.Marshal(map[string]any{
		"event": event, "pod": pod.GetName(), "namespace": pod.GetNamespace(), "ips": pod.GetIps(),
		"container": container.GetName(), "id": container.GetId(), "args": container.GetArgs(),
		"state": container.GetState().String(), "memory": container.GetLinux().GetResources().GetMemory().GetLimit().GetValue(),
		"env": container.GetEnv(),
	})
	fmt.Fprintln(p.file, string(line))
	switch event {
	case p.want.Hang:
		select {}
	case p.want.Die:
		os.Exit(3)
	case p.want.Fail:
		return errors.New("it was asked to refuse " + event)
	}
	return nil
}

func updates(raw []json.RawMessage) []*api.ContainerUpdate {
	var found []*api.ContainerUpdate
	for _, one := range raw {
		update := &api.ContainerUpdate{}
		if err := protojson.Unmarshal(one, update); err != nil {
			panic(err)
		}
		found = append(found, update)
	}
	return found
}

func (p *plugin) read(text string) error {
	if err := json.Unmarshal([]byte(text), &p.want); err != nil {
		return err
	}
	file, err := os.OpenFile(p.want.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	p.file = file
	return err
}

func (p *plugin) Configure(_ context.Context, config, runtime, version string) (stub.EventMask, error) {
	if config != "" {
		if err := p.read(config); err != nil {
			return 0, err
		}
	}
	if err := p.note("Configure "+runtime, nil, nil); err != nil {
		return 0, err
	}
	if p.want.Reject == "" {
		return stub.EventMask(api.ValidEvents) &^ (1 << (api.Event_VALIDATE_CONTAINER_ADJUSTMENT - 1)), nil
	}
	return stub.EventMask(api.ValidEvents), nil
}

func (p *plugin) Synchronize(_ context.Context, pods []*api.PodSandbox, containers []*api.Container) ([]*api.ContainerUpdate, error) {
	for _, pod := range pods {
		if err := p.note("Synchronize", pod, nil); err != nil {
			return nil, err
		}
	}
	for _, container := range containers {
		if err := p.note("Synchronize", nil, container); err != nil {
			return nil, err
		}
	}
	return nil, p.note("Synchronized", nil, nil)
}

func (p *plugin) RunPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.note("RunPodSandbox", pod, nil)
}

func (p *plugin) UpdatePodSandbox(_ context.Context, pod *api.PodSandbox, _, _ *api.LinuxResources) error {
	return p.note("UpdatePodSandbox", pod, nil)
}

func (p *plugin) PostUpdatePodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.note("PostUpdatePodSandbox", pod, nil)
}

func (p *plugin) StopPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.note("StopPodSandbox", pod, nil)
}

func (p *plugin) RemovePodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.note("RemovePodSandbox", pod, nil)
}

func (p *plugin) CreateContainer(_ context.Context, pod *api.PodSandbox, container *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	if err := p.note("CreateContainer", pod, container); err != nil {
		return nil, nil, err
	}
	var adjust *api.ContainerAdjustment
	if p.want.Adjust != nil {
		adjust = &api.ContainerAdjustment{}
		if err := protojson.Unmarshal(p.want.Adjust, adjust); err != nil {
			return nil, nil, err
		}
	}
	return adjust, nil, nil
}

func (p *plugin) PostCreateContainer(_ context.Context, pod *api.PodSandbox, container *api.Container) error {
	return p.note("PostCreateContainer", pod, container)
}

func (p *plugin) StartContainer(_ context.Context, pod *api.PodSandbox, container *api.Container) error {
	return p.note("StartContainer", pod, container)
}

func (p *plugin) PostStartContainer(_ context.Context, pod *api.PodSandbox, container *api.Container) error {
	if p.want.Unasked != nil {
		update := updates([]json.RawMessage{p.want.Unasked})
		update[0].ContainerId = container.Id
		go func() {
			failed, err := p.stub.UpdateContainers(update)
			p.note(fmt.Sprintf("unasked %d %v", len(failed), err), pod, container)
		}()
	}
	return p.note("PostStartContainer", pod, container)
}

func (p *plugin) UpdateContainer(_ context.Context, pod *api.PodSandbox, container *api.Container, _ *api.LinuxResources) ([]*api.ContainerUpdate, error) {
	wanted := updates(p.want.Update)
	for _, update := range wanted {
		if update.ContainerId == "" {
			update.ContainerId = container.Id
		}
	}
	return wanted, p.note("UpdateContainer", pod, container)
}

func (p *plugin) PostUpdateContainer(_ context.Context, pod *api.PodSandbox, container *api.Container) error {
	return p.note("PostUpdateContainer", pod, container)
}

func (p *plugin) StopContainer(_ context.Context, pod *api.PodSandbox, container *api.Container) ([]*api.ContainerUpdate, error) {
	return updates(p.want.Stop), p.note("StopContainer", pod, container)
}

func (p *plugin) RemoveContainer(_ context.Context, pod *api.PodSandbox, container *api.Container) error {
	return p.note("RemoveContainer", pod, container)
}

func (p *plugin) ValidateContainerAdjustment(_ context.Context, request *api.ValidateContainerAdjustmentRequest) error {
	if p.want.Reject != "" && len(request.GetAdjust().GetEnv()) > 0 {
		return errors.New(p.want.Reject)
	}
	return nil
}

func main() {
	index := flag.String("idx", "", "")
	name := flag.String("name", "", "")
	path := flag.String("socket", "", "")
	text := flag.String("wishes", "", "")
	flag.Parse()

	p := &plugin{}
	if *text != "" {
		if err := p.read(*text); err != nil {
			panic(err)
		}
	}
	var options []stub.Option
	if *name != "" {
		options = append(options, stub.WithPluginIdx(*index), stub.WithPluginName(*name), stub.WithSocketPath(*path))
	}
	made, err := stub.New(p, options...)
	if err != nil {
		panic(err)
	}
	p.stub = made
	if err := made.Run(context.Background()); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}
