/* SPDX-License-Identifier: Apache-2.0 */
/* Ports: what an iothread serves, of any kind. These calls take the iothread's lock for the time that
 * one turn takes at most, and may be made from any thread. */

struct vb_port;

/* Take no more requests, or go on. Holds add up; a new port is held once. */
void vb_port_hold(struct vb_port *port);
void vb_port_release(struct vb_port *port);

/* Requests taken and not completed. While the port is held, reaching 0 signals the upcall fd, and
 * the engine has closed the map's file by then. */
uint32_t vb_port_in_flight(struct vb_port *port);

/* Why the port takes no more requests, or NULL. */
const char *vb_port_broken(struct vb_port *port);

/* The errno with which file I/O last failed since this was last called; 0: it has not. `write` asks
 * about all that is not a read. Failures signal the upcall fd. Takes no lock. */
int vb_port_take_error(struct vb_port *port, int write);

/* Use a map from now on (NULL: everything goes up). Requests that used the former one may still be
 * in flight: `vb_port_mapped_in_flight` counts them, and a file that the engine still has open. While
 * the port is held, reaching 0 signals the upcall fd. */
void vb_port_set_map(struct vb_port *port, struct vb_extent_map *map);
uint32_t vb_port_mapped_in_flight(struct vb_port *port);

/* Begin to wait for requests that went by the map's table before now; those that begin later have
 * seen what was changed in it. Returns how many there are. When `vb_port_unsettled` gets to 0 the
 * upcall fd is signalled. Not again before that. */
uint32_t vb_port_settle(struct vb_port *port);
uint32_t vb_port_unsettled(struct vb_port *port);

/* Written by the iothread, read without a lock. */
const struct vb_stats *vb_port_stats(struct vb_port *port);

/* Answer requests that went up: `n` tags, each with the status of its kind of port and the bytes that
 * were put into its segments. Without both they are reads and writes that did all they should. Tags
 * that are not up are ignored. */
void vb_port_complete(struct vb_port *port, uint32_t n, const uint16_t *tags,
                      const uint8_t *statuses, const uint32_t *bytes);

/* Free a port that is held and idle. */
void vb_port_free(struct vb_port *port);
