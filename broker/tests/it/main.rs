//! The broker over real sockets: real processes, one behaviour a test.

mod support;

mod durability;
mod first_light;
<<<<<<< HEAD
mod sessions;
=======
mod rumqttc;
>>>>>>> w-clients
