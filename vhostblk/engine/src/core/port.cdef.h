/* SPDX-License-Identifier: Apache-2.0 */
/* Ports: what an iothread serves, of any kind. These calls don't wait for it; see `command.h`. A port's
 * calls are made on one thread. */

struct vb_port;

/* Have the iothread serve a new port, which is held once. */
void vb_port_open(struct vb_port *port);

/* Serve and keep a port no more, which is held and idle: it is gone. */
void vb_port_close(struct vb_port *port);

/* Take no more requests, or go on. Holds add up. */
void vb_port_hold(struct vb_port *port);
void vb_port_release(struct vb_port *port);

/* Requests taken and not completed; and commands that have not run, which may be a hold. While the port
 * is held, reaching 0 is news, and the engine has closed the map's file by then. */
uint32_t vb_port_in_flight(struct vb_port *port);

/* Commands that have not run. Reaching 0 is news. */
uint32_t vb_port_pending(struct vb_port *port);

/* Why the port takes no more requests, or NULL. */
const char *vb_port_broken(struct vb_port *port);

/* The errno with which file I/O last failed since this was last called; 0: it has not. `write` asks
 * about all that is not a read. Failures are news. */
int vb_port_take_error(struct vb_port *port, int write);

/* Use a map from now on (NULL: everything goes up); held and idle, or not open yet. The former one is
 * used until the command has run. `vb_port_mapped_in_flight` counts requests that go by a map, and a
 * file that the engine still has open. */
void vb_port_set_map(struct vb_port *port, struct vb_extent_map *map);
uint32_t vb_port_mapped_in_flight(struct vb_port *port);

/* Begin to wait for requests that went by the map's table before now; those that begin later have
 * seen what was changed in it. When `vb_port_unsettled`, how many there are, gets to 0, this is news.
 * Not again before that. */
void vb_port_settle(struct vb_port *port);
uint32_t vb_port_unsettled(struct vb_port *port);

/* Written by the iothread. */
const struct vb_stats *vb_port_stats(struct vb_port *port);

/* Answer requests that went up: `n` tags, each with the status of its kind of port and the bytes that
 * were put into its segments. Without both they are reads and writes that did all they should. Tags
 * that are not up are ignored. */
void vb_port_complete(struct vb_port *port, uint32_t n, const uint16_t *tags,
                      const uint8_t *statuses, const uint32_t *bytes);

/* Take up to `limit` ports that have news; returns how many. Some may be closed by now. */
uint32_t vb_news_take(struct vb_iothread *iothread, struct vb_port **ports, uint32_t limit);
