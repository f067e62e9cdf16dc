// Package streamtest helps to test code that uses package gvstream, and
// transports written for it.
//
// A [Pipe] is a connection in memory. [Faults] makes any connection drop,
// repeat, reorder, delay and break, the same way for the same seed. A [Recorder]
// checks what a reader was given: every number once and in order, or declared
// lost. [TestTransport] checks that a transport keeps the contract of
// [gvstream.SendFunc] and [gvstream.ReceiveFunc].
//
// A viewer's test over a bad connection, in a testing/synctest bubble where
// hours of reconnecting take no time:
//
//	func TestViewer(t *testing.T) {
//		synctest.Test(t, func(t *testing.T) {
//			ctx, cancel := context.WithCancel(t.Context())
//			defer cancel()
//			hub, viewer := startHub(ctx), gvstream.NewViewer(nil)
//			go func() {
//				for seed := uint64(1); ctx.Err() == nil; seed++ {
//					a, b := streamtest.Pipe()
//					go hub.ConnectViewer("tab-1").Run(ctx, b.Send, b.Receive)
//					bad := streamtest.Faults{Seed: seed, Drop: 0.1, CutAfter: 100}
//					send, receive := bad.Wrap(a.Send, a.Receive)
//					viewer.Connect().Run(ctx, send, receive)
//					a.Close()
//				}
//			}()
//			viewer.Watch("build-42", gvstream.Position{})
//			var rec streamtest.Recorder
//			for item, err := range viewer.Items(ctx) {
//				if err != nil {
//					t.Fatal(err)
//				}
//				if err := rec.Record(item); err != nil {
//					t.Fatal(err)
//				}
//				if item.End {
//					break
//				}
//			}
//		})
//	}
//
// The package starts no goroutine that outlives the call that started it, except
// when a transport under test does not return from a call of its own.
package streamtest
