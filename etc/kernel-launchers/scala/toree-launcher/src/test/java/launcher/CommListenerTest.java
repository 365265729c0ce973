package launcher;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.nio.charset.StandardCharsets;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;

class CommListenerTest {
    private static final ObjectMapper JSON = new ObjectMapper();
    private static final byte[] SECRET = Payload.ascii("secret");

    private final BlockingQueue<Integer> delivered = new LinkedBlockingQueue<>();
    private ServerSocket socket;

    private void listen(byte[] secret) throws Exception {
        socket = new ServerSocket(0, 64, InetAddress.getLoopbackAddress());
        new CommListener(socket, secret, number -> number < 32 && delivered.add(number)).start();
    }

    @AfterEach
    void close() throws IOException {
        socket.close();
    }

    private void say(String text) throws IOException {
        try (Socket caller = call()) {
            caller.getOutputStream().write(Payload.ascii(text));
        }
    }

    private Socket call() throws IOException {
        return new Socket(InetAddress.getLoopbackAddress(), socket.getLocalPort());
    }

    @Test
    void version1TakesOneObjectAConnectionAndSurvivesGarbage() throws Exception {
        listen(null);
        for (String garbage : new String[] {"", "{", "[]", "null", "{\"signum\": \"2\"}", "x".repeat(100_000)}) {
            try {
                say(garbage);
            } catch (IOException e) {
                // The listener may hang up on too long a text before it is all written.
                assertTrue(garbage.length() > 4096);
            }
        }
        say("{\"signum\": 2, \"unknown\": {}}");
        assertEquals(2, delivered.poll(5, TimeUnit.SECONDS));
        assertTrue(delivered.isEmpty());
    }

    @Test
    void silentCallersDelayNobody() throws Exception {
        listen(null);
        try (Socket silent = call(); Socket other = call()) {
            say("{\"signum\": 0}");
            assertEquals(0, delivered.poll(2, TimeUnit.SECONDS));
            assertFalse(silent.isClosed() || other.isClosed());
        }
    }

    @Test
    void shutdownClosesThePort() throws Exception {
        listen(null);
        say("{\"shutdown\": 0}");
        say("{\"shutdown\": 1}");
        for (int i = 0; i < 100 && !socket.isClosed(); i++) {
            Thread.sleep(20);
        }
        assertTrue(socket.isClosed());
    }

    private static final class Caller implements AutoCloseable {
        private final Socket socket;
        private final BufferedReader reader;
        private final String challenge;

        Caller(Socket socket) throws IOException {
            this.socket = socket;
            socket.setSoTimeout(5000);
            reader = new BufferedReader(new InputStreamReader(socket.getInputStream(), StandardCharsets.UTF_8));
            JsonNode hello = read();
            assertEquals(2, hello.get("version").intValue());
            challenge = hello.get("challenge").textValue();
            assertTrue(challenge.matches("[0-9a-f]{32}"));
        }

        /** Returns the listener's answer, or null when it hung up. */
        JsonNode read() throws IOException {
            String line = reader.readLine();
            return line == null ? null : JSON.readTree(line);
        }

        String line(String secret, int sequence, String command) throws Exception {
            byte[] key = Payload.hmac(Payload.ascii(secret), Payload.ascii("EG-comm-v2"));
            String mac = CommSession.mac(key, challenge, sequence, command);
            return JSON.createObjectNode().put("seq", sequence).put("command", command).put("mac", mac) + "\n";
        }

        JsonNode ask(String line) throws IOException {
            socket.getOutputStream().write(Payload.ascii(line));
            return read();
        }

        @Override
        public void close() throws IOException {
            socket.close();
        }
    }

    @Test
    void version2ObeysAuthenticatedCommandsOnOneConnection() throws Exception {
        listen(SECRET);
        try (Caller caller = new Caller(call())) {
            JsonNode reply = caller.ask(caller.line("secret", 1, "{\"signum\":0}"));
            assertEquals(JSON.readTree("{\"seq\":1,\"ok\":true}"), reply);
            assertTrue(caller.ask(caller.line("secret", 2, "{\"signum\":2}")).get("ok").booleanValue());
            JsonNode refused = caller.ask(caller.line("secret", 3, "{\"signum\":64}"));
            assertFalse(refused.get("ok").booleanValue());
            assertEquals("signal not allowed", refused.get("error").textValue());
        }
        assertEquals(0, delivered.take());
        assertEquals(2, delivered.take());
    }

    @Test
    void version2HangsUpOnForgeriesReplaysAndVersion1() throws Exception {
        listen(SECRET);
        try (Caller caller = new Caller(call())) {
            assertNull(caller.ask(caller.line("guess", 1, "{\"signum\":9}")));
        }
        try (Caller caller = new Caller(call())) {
            assertNull(caller.ask("{\"signum\": 9}\n"));
        }
        String heard;
        try (Caller caller = new Caller(call())) {
            heard = caller.line("secret", 1, "{\"signum\":9}");
        }
        try (Caller caller = new Caller(call())) {
            assertNull(caller.ask(heard));
        }
        try (Caller caller = new Caller(call())) {
            String line = caller.line("secret", 1, "{\"signum\":0}");
            assertTrue(caller.ask(line).get("ok").booleanValue());
            assertNull(caller.ask(line));
        }
        assertEquals(0, delivered.take());
        assertTrue(delivered.isEmpty());
    }
}
